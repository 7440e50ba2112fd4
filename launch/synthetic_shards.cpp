#include <algorithm>

#include "data_pipeline/shards.h"
#include "launch/bench.h"
#include "runtime/random.h"

namespace notellm {
namespace {

constexpr int64_t note_count = 4096, pair_count = 65536;
// About what the English prompts take with a vocabulary of 8192.
constexpr int instruction_tokens = 34, guidance_tokens = 5, frame_tokens = 22, output_tokens = 3;
constexpr int32_t first_ordinary_token = 259;

class RandomTokens {
 public:
  RandomTokens(uint64_t seed, int32_t vocabulary) : seed_(seed), vocabulary_(vocabulary) {}
  uint64_t below(uint64_t n) { return random_bits(seed_, counter_++, 0) % n; }
  std::vector<int32_t> list(int64_t length) {
    std::vector<int32_t> tokens(length);
    for (int32_t& token : tokens)
      token = first_ordinary_token + static_cast<int32_t>(below(std::max(1, vocabulary_ - 1 - first_ordinary_token)));
    return tokens;
  }

 private:
  uint64_t seed_, counter_ = 0;
  int32_t vocabulary_;
};

PromptTokens make_prompt(const RunConfig& config, RandomTokens& random) {
  PromptTokens prompt;
  prompt.vocabulary = std::max(config.data.tokenizer.vocabulary, first_ordinary_token) + 1;
  prompt.emb = prompt.vocabulary - 1;
  prompt.eos = 2;
  prompt.category_instruction = random.list(instruction_tokens);
  prompt.category_guidance = random.list(guidance_tokens);
  for (int j = 0; j < config.data.prompt.max_hashtags; ++j) {
    prompt.hashtag_instruction.push_back(random.list(instruction_tokens));
    prompt.hashtag_guidance.push_back(random.list(guidance_tokens));
  }
  return prompt;
}

}  // namespace

// Titles and contents are between half as long as the configuration allows and as long.
Shards synthetic_shards(const RunConfig& config) {
  const PromptConfig& p = config.data.prompt;
  RandomTokens random(static_cast<uint64_t>(config.seed),
                      std::max(config.data.tokenizer.vocabulary, first_ordinary_token) + 1);
  Shards shards;
  NoteTable& notes = shards.notes;
  notes.prompt = make_prompt(config, random);
  notes.tokenizer_digest = "synthetic";
  notes.category_names = {"synthetic"};
  for (int64_t i = 0; i < note_count; ++i) {
    const int most = p.title_tokens + p.content_tokens;
    const int64_t length =
        std::min<int64_t>(p.max_note_tokens, frame_tokens + most / 2 + random.below(most - most / 2 + 1));
    notes.ids.push_back(std::to_string(i));
    notes.titles.push_back("synthetic");
    notes.category_input.push_back(random.list(length));
    notes.hashtag_input.push_back(random.list(length));
    notes.category.push_back(random.list(output_tokens));
    notes.category_id.push_back(0);
    for (int j = 0; j < p.max_hashtags; ++j) {
      notes.hashtag_inner.push_back(random.list(output_tokens + 1));
      notes.hashtag_last.push_back(random.list(output_tokens));
    }
    notes.hashtag_begin.push_back(notes.hashtag_inner.size());
    notes.clicks.push_back(1);
    notes.in_pool.push_back(1);
  }
  const auto pairs = std::max<int64_t>(pair_count, config.train.pairs_per_step);
  for (int64_t i = 0; i < pairs; ++i) {
    const auto query = static_cast<int32_t>(random.below(note_count));
    const auto other = static_cast<int32_t>(random.below(note_count - 1));
    shards.pairs.train.push_back({query, other + (other >= query), 1});
  }
  return shards;
}

}  // namespace notellm
