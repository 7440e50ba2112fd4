// Outputs of the notes of a packed batch: the loop around the decoder that chooses tokens until each note is done.
#pragma once

#include "kernels/sample.h"
#include "model/decoder.h"
#include "model/token_trie.h"

namespace notellm {

struct GenerationConfig {
  int max_tokens = 32;  // most tokens of an output, EOS not counted
  bool greedy = true;   // the likeliest token; of equally likely ones the first. Else drawn:
  Sampling sampling;
  uint64_t seed = 1;  // a note's k-th token is a pure function of the logits, the seed, the note and k
};

// What the outputs of a batch may be.
struct OutputRules {
  int32_t eos;                        // ends an output
  int64_t vocabulary;                 // tokens in use: all others are padding
  const TokenTrie* closed = nullptr;  // the only outputs, if given
};

struct Generated {
  std::vector<int32_t> tokens;  // without EOS
  bool ended = false;           // by EOS, or because nothing else could follow; else cut at max_tokens or the context
};

class Generator {
 public:
  // As Transformer's. Throws Error(usage): a sampling number outside its bounds.
  Generator(const ModelConfig& config, DType compute, const GenerationConfig& generation, Device device = Device::cpu,
            Communicator* tensor = nullptr);

  // The outputs of the batch's notes, as of Decoder::begin, on every rank of the tensor group. PackedBatch::note_ids
  // make a note's random numbers. vectors: as Decoder::begin. Greedy outputs do not depend on batch or ranks but for
  // rounding. Throws Error: as Decoder::begin; Error(diverged): logits that are no finite numbers; Error(data): a
  // closed set whose outputs do not fit in max_tokens or the context.
  std::vector<Generated> run(Stream& stream, const Weights& weights, const PackedBatch& batch, const OutputRules& rules,
                             Tensor vectors = {});

  int64_t steps() const { return steps_; }  // so far, of all batches

 private:
  // A note that is not done yet; its row of the logits is its place among these.
  struct Open {
    int32_t note, node;
  };
  // Columns [begin, end) of the logits in use that the rank has.
  struct Columns {
    int64_t begin, end;
    int64_t count() const { return end - begin; }
  };

  void choose(Stream& stream, const PackedBatch& batch, const OutputRules& rules);
  void choose_likeliest(Stream& stream, const OutputRules& rules);
  void combine_parts();
  void draw(Stream& stream, const PackedBatch& batch, const OutputRules& rules);
  Candidates candidates_of(Stream& stream, const OutputRules& rules, Columns columns);
  Tensor whole_logits(Stream& stream);
  void advance(const PackedBatch& batch, const OutputRules& rules, std::vector<Generated>& outputs);

  GenerationConfig config_;
  Device device_;
  Decoder decoder_;
  std::vector<Open> open_;
  std::vector<int32_t> tokens_;  // chosen, of each open note
  std::vector<float> largest_;   // its logit
  // Lists of a choice, and what the ops read of them.
  std::vector<int32_t> offsets_, listed_;
  std::vector<float> uniform_;
  Upload lists_, numbers_;
  Tensor offsets_view_, listed_view_, uniform_view_;
  Buffer token_memory_, largest_memory_, gathered_memory_, whole_memory_;  // of the device
  int64_t steps_ = 0;
};

}  // namespace notellm
