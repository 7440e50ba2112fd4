// encode_texts TOKENIZER words|whole THREADS [REPEATS] < texts > tokens
//
// Encodes texts that begin a sequence, for tests/parity/tokens.py: in, of each text, its length (uint32) and its bytes;
// out, of each, the number of its tokens (uint32) and these (int32). words: by WordEncoder, one a thread; whole: by
// Tokenizer::encode. Says on standard error how long encoding took, from texts in memory to tokens in memory: the
// shortest of REPEATS, each with encoders that remember nothing.
#include <omp.h>

#include <cstdio>
#include <cstring>
#include <iostream>
#include <iterator>

#include "data_pipeline/word_encoder.h"
#include "runtime/error.h"
#include "runtime/stopwatch.h"

using namespace notellm;

namespace {

std::vector<std::string_view> split(const std::string& input) {
  std::vector<std::string_view> texts;
  for (size_t at = 0; at < input.size();) {
    uint32_t length = 0;
    NOTELLM_CHECK(at + sizeof length <= input.size(), "the input is cut short");
    std::memcpy(&length, input.data() + at, sizeof length);
    at += sizeof length;
    NOTELLM_CHECK(at + length <= input.size(), "the input is cut short");
    texts.emplace_back(input.data() + at, length);
    at += length;
  }
  return texts;
}

double encode(const Tokenizer& tokenizer, const std::vector<std::string_view>& texts, bool words, int threads,
              std::vector<std::vector<int32_t>>& tokens) {
  tokens.assign(texts.size(), {});
  const Stopwatch watch;
  std::vector<WordEncoder> encoders(static_cast<size_t>(threads), WordEncoder(tokenizer));
#pragma omp parallel for schedule(dynamic, 64) num_threads(threads)
  for (size_t i = 0; i < texts.size(); ++i)
    tokens[i] = words ? encoders[static_cast<size_t>(omp_get_thread_num())].encode(texts[i], Place::begins)
                      : tokenizer.encode(texts[i], Place::begins);
  return watch.seconds();
}

}  // namespace

int main(int argc, char** argv) try {
  NOTELLM_CHECK(argc >= 4, "encode_texts TOKENIZER words|whole THREADS [REPEATS]");
  const Tokenizer tokenizer = Tokenizer::load(argv[1]);
  const bool words = std::string(argv[2]) == "words";
  const int threads = std::stoi(argv[3]), repeats = argc > 4 ? std::stoi(argv[4]) : 1;
  const std::string input{std::istreambuf_iterator<char>(std::cin), {}};
  const std::vector<std::string_view> texts = split(input);
  std::vector<std::vector<int32_t>> tokens;
  double seconds = encode(tokenizer, texts, words, threads, tokens);
  for (int i = 1; i < repeats; ++i) seconds = std::min(seconds, encode(tokenizer, texts, words, threads, tokens));
  for (const auto& ids : tokens) {
    const auto count = static_cast<uint32_t>(ids.size());
    std::fwrite(&count, sizeof count, 1, stdout);
    std::fwrite(ids.data(), sizeof(int32_t), ids.size(), stdout);
  }
  std::fprintf(stderr, "%.4f\n", seconds);
  return std::fflush(stdout) == 0 ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "encode_texts: %s\n", error.what());
  return 1;
}
