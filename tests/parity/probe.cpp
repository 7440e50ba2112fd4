// parity_probe CHECKPOINT TOKENS OUT: the logits that the program's model has after every token, for tests/parity.
//   TOKENS  text: a sequence of token ids a line
//   OUT     safetensors: "logits" f32 [tokens of all lines, tokens in use]
#include <cstdio>
#include <fstream>
#include <sstream>

#include "kernels/gemm.h"
#include "model/transformer.h"
#include "tests/support/tiny_model.h"
#include "tests/support/write_safetensors.h"
#include "training/checkpoint.h"

namespace notellm {
namespace {

std::vector<int32_t> numbers(const std::string& line) {
  std::istringstream text(line);
  return {std::istream_iterator<int32_t>(text), std::istream_iterator<int32_t>()};
}

// One segment of which each row is read: the last one as a note's, the others as those that predict.
PackedBatch batch_of(const std::vector<int32_t>& tokens) {
  const auto n = static_cast<int32_t>(tokens.size());
  PackedBatch b;
  b.tokens = tokens;
  for (int32_t i = 0; i < n; ++i) b.positions.push_back(i);
  b.segments = {{0, n, -1}};
  b.note_rows = {n - 1};
  b.note_ids = {0};
  for (int32_t i = 0; i + 1 < n; ++i) {
    b.label_rows.push_back(i);
    b.labels.push_back(tokens[i + 1]);
  }
  return b;
}

void probe(const std::string& folder, const std::string& token_file, const std::string& out) {
  const CheckpointInfo info = verify_checkpoint(find_checkpoint(folder));
  const ModelConfig& config = info.config.model;
  const ParameterLayout layout(config, info.manifest.vocabulary);
  test::FlatWeights model(layout);
  load_weights(info.path, layout, true, model.flat);
  Transformer transformer(config, DType::f32);
  const int64_t vocabulary = info.manifest.tokens_in_use;
  std::vector<float> logits;
  std::ifstream lines(token_file);
  for (std::string line; std::getline(lines, line);) {
    const PackedBatch batch = batch_of(numbers(line));
    const auto rows = static_cast<int64_t>(batch.tokens.size());
    ModelInput input;
    input.set(batch, info.manifest.vocabulary, true);
    Stream stream;
    Arena arena(int64_t{1} << 30);
    const Tensor hidden = transformer.forward(stream, model.weights, input, arena, false);
    std::vector<float> in_order;
    for (int64_t i = 0; i < rows; ++i) {
      const int32_t place = i + 1 < rows ? input.label_places().as<int32_t>()[i] : input.note_places().as<int32_t>()[0];
      const auto row = hidden.slice(place, place + 1).span<float>();
      in_order.insert(in_order.end(), row.begin(), row.end());
    }
    logits.resize(logits.size() + static_cast<size_t>(rows * vocabulary));
    const Tensor to = Tensor::of(logits.data() + std::ssize(logits) - rows * vocabulary, {rows, vocabulary});
    gemm(stream, Tensor::of(in_order.data(), {rows, config.dim}), Transpose::no,
         model.weights.head.slice(0, vocabulary), Transpose::yes, to);
  }
  test::write_safetensors(out, {{"logits", Tensor::of(logits.data(), {std::ssize(logits) / vocabulary, vocabulary})}});
}

}  // namespace
}  // namespace notellm

int main(int argc, char** argv) {
  try {
    NOTELLM_CHECK(argc == 4, "parity_probe CHECKPOINT TOKENS OUT");
    notellm::probe(argv[1], argv[2], argv[3]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "parity_probe: %s\n", error.what());
    return 1;
  }
}
