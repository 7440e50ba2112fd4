// Learning on real data, from raw notes and clicks to recall on users that training never saw: a tenth of the users of
// the frozen data set, an encoder of 0.2 M parameters, 150 steps (7 seconds of one core, preparation included).
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "data_pipeline/prepare.h"
#include "evaluation/baselines.h"
#include "evaluation/recall.h"
#include "runtime/files.h"
#include "tests/support/shared.h"
#include "tests/support/temp_dir.h"
#include "tests/support/unpack.h"
#include "training/checkpoint.h"
#include "training/trainer.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

constexpr const char* data_folder = "data/debian-bookworm";
constexpr int training_steps = 150;

// Every tenth user with the notes that these users clicked.
void write_slice(const test::TempDir& folder) {
  std::ifstream all_clicks(test::unpack(test::shared_path(data_folder) / "clicks_bd.tsv.xz", folder));
  std::ofstream clicks(folder / "clicks.tsv");
  std::set<std::string> clicked;
  int64_t number = 0;
  for (std::string line; std::getline(all_clicks, line);) {
    if (number++ % 10 != 0) continue;
    clicks << line << "\n";
    std::istringstream ids(line.substr(line.find('\t')));
    for (std::string id; ids >> id;) clicked.insert(id);
  }
  std::ifstream all_notes(test::unpack(test::shared_path(data_folder) / "notes.jsonl.xz", folder));
  std::ofstream notes(folder / "slice.jsonl");
  for (std::string line; std::getline(all_notes, line);)
    if (clicked.contains(nlohmann::json::parse(line).at("id").dump())) notes << line << "\n";
}

RunConfig config_in(const test::TempDir& folder) {
  RunConfig c;
  c.data.notes = folder / "slice.jsonl";
  c.data.title = "{name}: {title}";
  c.data.shards = folder / "shards";
  c.data.clicks.files = {folder / "clicks.tsv"};
  c.data.clicks.heldout_share = 0.1;
  c.data.clicks.stop_share = 0.01;
  c.data.clicks.min_user_notes = 2;
  c.data.clicks.max_user_notes = 100;
  c.data.tokenizer.vocabulary = 2000;
  c.data.prompt.title_tokens = 24;
  c.data.prompt.content_tokens = 24;
  c.data.prompt.max_hashtags = 3;
  c.model.dim = c.model.note_dim = 64;
  c.model.layers = 1;
  c.model.heads = c.model.kv_heads = 2;
  c.model.ffn = 128;
  c.model.context = 256;
  c.model.init.embedding_std = 0.05;
  c.model.init.first_attention = FirstAttention::average;
  c.model.finish();
  c.loss.sampling_correction = SamplingCorrection::logq;
  c.optimizer.learning_rate = 2e-3;
  c.optimizer.embedding_scale = 5;
  c.optimizer.beta2 = 0.98;
  c.optimizer.warmup_steps = 10;
  c.train.run = folder / "run";
  c.train.steps = training_steps;
  c.train.pairs_per_step = 128;
  c.train.checkpoint_every = training_steps;
  return c;
}

double recall_100(const std::vector<Rank>& ranks) { return summarize(ranks).recall[1]; }

double encoder_recall(const RunConfig& c, const Shards& shards, const Pool& pool, std::span<const Question> questions,
                      Communicator& self) {
  const ParameterLayout layout(c.model, padded_vocabulary(shards.notes.prompt.vocabulary));
  const Buffer memory(layout.size() * 4);
  const Tensor flat = memory.tensor(DType::f32, {layout.size()});
  load_weights(find_checkpoint(c.train.run), layout, true, flat);
  Embedder embedder(c.model, DType::f32, 256);
  Stream stream;
  const Weights weights(layout, flat);
  const Buffer vectors = embed_pool(stream, self, embedder, weights, shards.notes, pool, false);
  return recall_100(rank_targets(stream, self, pool_vectors(vectors, weights, pool), questions));
}

// The mean of a value over the last ten steps.
double final_mean(const RunConfig& c, const char* key) {
  std::istringstream lines(read_file(fs::path(c.train.run) / "metrics.jsonl"));
  double sum = 0;
  for (std::string line; std::getline(lines, line);) {
    const auto json = nlohmann::json::parse(line);
    if (json.at("step").get<int>() > training_steps - 10) sum += json.at(key).get<double>();
  }
  return sum / 10;
}

TEST(Learning, BeatsPopularityOnUnseenUsers) {
  NOTELLM_NEEDS_SHARED(data_folder);
  spdlog::set_level(spdlog::level::warn);
  const test::TempDir folder;
  write_slice(folder);
  const RunConfig c = config_in(folder);
  Communicator self = Communicator::self();
  prepare(c.data, self);
  EXPECT_EQ(train(c, "never", self), TrainingEnd::finished);

  const Shards shards = read_shards(c.data.shards);
  const Pool pool = make_pool(shards.notes);
  const auto questions = make_questions(pool, shards.pairs.test);
  ASSERT_GT(questions.size(), 5000u);
  const double popularity = recall_100(popularity_ranks(shards.notes, pool, questions));
  const double in_category = recall_100(category_popularity_ranks(shards.notes, pool, questions));
  const double encoder = encoder_recall(c, shards, pool, questions, self);
  RecordProperty("recall_100", std::to_string(encoder));
  // Measured with seeds 1 to 4: encoder 33.8, 34.4, 33.2, 32.5 % (standard deviation 0.8), popularity 11.1, popularity
  // in the category 30.2; untrained 11.6, first_attention random 26.5. Token loss 3.9 to 4.2, untrained 7.7. The bounds
  // are 4 standard deviations away, for machines that round otherwise.
  EXPECT_GT(encoder, popularity + 0.19) << "popularity: " << popularity;
  EXPECT_GT(encoder, in_category) << "popularity in the category: " << in_category;
  EXPECT_LT(final_mean(c, "token_loss"), 5);
}

}  // namespace
}  // namespace notellm
