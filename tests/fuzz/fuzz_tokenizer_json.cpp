// Any bytes as a tokenizer.json and a text: an Error, or a tokenizer that keeps its promises on the text.
//
// An input that begins with a byte below 8 is a text for a style of tests/golden/tokenizers. Any other is a
// tokenizer.json up to the first byte 0xff, then the text.
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "data_pipeline/word_encoder.h"
#include "runtime/error.h"

using namespace notellm;

namespace {

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

const Tokenizer& golden(size_t style) {
  static constexpr const char* styles[] = {"gpt2",   "gpt2_prefix", "llama3",    "qwen2",
                                           "smollm", "llama2",      "metaspace", "unknown"};
  static std::unique_ptr<Tokenizer> tokenizers[std::size(styles)];
  if (!tokenizers[style])
    tokenizers[style] = std::make_unique<Tokenizer>(Tokenizer::load(
        std::string(NOTELLM_SOURCE_DIR "/tests/golden/tokenizers/") + styles[style] + "/tokenizer.json"));
  return *tokenizers[style];
}

void check(const Tokenizer& tokenizer, std::string_view text) {
  WordEncoder encoder(tokenizer);
  for (const Place place : {Place::begins, Place::after_token, Place::goes_on}) {
    const std::vector<int32_t> tokens = tokenizer.encode(text, place);
    for (const int32_t token : tokens) {
      require(token >= 0 && token < tokenizer.vocabulary(), "tokens are in the vocabulary");
      require(token != tokenizer.emb(), "a text does not become [EMB]");
    }
    require(encoder.encode(text, place) == tokens, "words have the tokens of the whole");
    (void)tokenizer.decode(tokens, place);
  }
  const std::vector<size_t> ends = tokenizer.token_ends(text);
  require(ends.size() == tokenizer.encode(text, Place::goes_on).size(), "each token has an end");
  require(std::is_sorted(ends.begin(), ends.end()) && (ends.empty() || ends.back() <= text.size()), "ends ascend");
  for (const int64_t limit : {0, 1, 7}) {
    const std::string_view part = encoder.truncate(text, false, limit);
    require(std::ssize(tokenizer.encode(part, Place::goes_on)) <= limit, "a cut text has at most so many tokens");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  try {
    if (size > 0 && data[0] < 8) {
      check(golden(data[0]), input.substr(1));
      return 0;
    }
    const size_t end = std::min(input.find('\xff'), size);
    const Tokenizer tokenizer = Tokenizer::from_files(
        {{"tokenizer.json", std::string(input.substr(0, end))}, {"tokenizer_config.json", R"({"eos_token": "</s>"})"}},
        "tokenizer.json");
    check(tokenizer, input.substr(std::min(end + 1, size)));
  } catch (const Error&) {
  }
  return 0;
}
