// What a step is said to take and send against what it takes and sends, on every mesh that the ranks of mpirun make.
#include <gtest/gtest.h>
#include <omp.h>

#include <numeric>

#include "losses/contrastive.h"
#include "tests/support/tiny_notes.h"
#include "training/plan.h"
#include "training/step.h"
#include "training/step_costs.h"

namespace notellm {
namespace {

RunConfig tiny_config() {
  RunConfig c;
  c.seed = 5;
  c.model.dim = 16;
  c.model.layers = 5;  // more than are held at once
  c.model.heads = 4;
  c.model.kv_heads = 2;  // fewer than 4 ranks
  c.model.head_dim = 4;
  c.model.qkv_bias = true;
  c.model.ffn = 24;
  c.model.note_dim = 6;
  c.model.context = 64;
  c.train.pairs_per_step = 22;  // not a multiple of the ranks
  return c;
}

// One step of the training loop, what it sent, and what was known of it beforehand.
struct Step {
  static constexpr int64_t number = 3;
  RunConfig config;
  test::TinyData data = test::tiny_data(40);
  Mesh mesh;
  TrainingState state;
  TrainingStep step;
  std::map<std::string, int64_t> sent;
  StepSizes sizes;
  StepResult result;

  Step(const RunConfig& c, Communicator& ranks)
      : config(c),
        mesh(ranks, c.parallel.tensor),
        state(config, data.notes.prompt, mesh),
        step(config, data.notes, data.pairs, mesh) {
    state.start_anew(config, data.notes.prompt);
    find_sizes();
    Stream stream;
    const auto before = ranks.bytes_sent();
    run(stream, number);
    for (const auto& [name, bytes] : ranks.bytes_sent())
      if (const int64_t own = bytes - (before.contains(name) ? before.at(name) : 0); own > 0) sent[name] = own;
  }
  // As Trainer does it.
  void run(Stream& stream, int64_t i) {
    const float tau = state.tau(stream);
    result = step.run(stream, i, state, tau);
    state.update(stream, 1e-3, i + 1);
    mesh.world.max("signal", int64_t{0});
  }
  // From the notes of the step.
  void find_sizes() {
    const int64_t slots = config.train.pairs_per_step;
    const Sampler sampler(data.notes, data.pairs, slots, sampler_config(config));
    std::vector<Sampler::Slot> notes;
    std::vector<int64_t> tokens;
    std::vector<int32_t> sequence;
    for (int64_t i = 0; i < slots; ++i) {
      notes.push_back(sampler.slot(number, i));
      tokens.push_back(0);
      for (const NoteExample* example : {&notes.back().query, &notes.back().target}) {
        int32_t first_label;
        compose(data.notes, *example, sequence, &first_label);
        tokens.back() += std::ssize(sequence);
      }
    }
    const auto lists = balance(tokens, mesh.data.size(), step.micro_batches());
    for (const auto& list : lists[mesh.data.rank()]) {
      std::vector<NoteExample> examples;
      for (const int32_t slot : list)
        for (const NoteExample& example : {notes[slot].query, notes[slot].target}) examples.push_back(example);
      PackedBatch batch;
      pack(data.notes, examples, config.train.share_prefix, batch);
      sizes.micro_batches.push_back({count(batch)});
      sizes.own_notes += notes_of_part(std::ssize(examples), {mesh.tensor.rank(), mesh.tensor.size()}).size();
    }
    sizes.all_notes = 2 * slots;
  }
};

std::map<std::string, int64_t> planned(const Step& s) {
  const StepTraffic traffic = step_traffic(s.config, s.state.layout, s.state.shards, s.mesh.place(), s.sizes);
  std::map<std::string, int64_t> bytes;
  for (const Traffic* group : {&traffic.world, &traffic.data, &traffic.tensor, &traffic.kv_copies})
    for (const Traffic::Item& item : group->items())
      if (item.bytes > 0) bytes[item.name] += item.bytes;
  return bytes;
}

// Calls check(config) for every mesh × sharding × recomputation × micro-batches × precision.
template <class Check>
void for_all(int ranks, const Check& check) {
  for (int tensor = 1; tensor <= ranks; tensor *= 2)
    for (Sharding sharding : {Sharding::none, Sharding::optimizer, Sharding::gradients, Sharding::parameters})
      for (Recompute recompute : {Recompute::none, Recompute::layer})
        for (int micro_batch : {0, 5})
          for (Precision precision : {Precision::fp32, Precision::bf16}) {
            RunConfig c = tiny_config();
            c.parallel = {tensor, sharding, recompute};
            c.train.micro_batch_pairs = micro_batch;
            c.precision = precision;
            c.model.tied_head = micro_batch == 0;
            if (sharding == Sharding::gradients) c.loss.alpha = 0;
            SCOPED_TRACE(fmt::format(
                "{} ranks, tensor {}, sharding {}, recompute {}, micro-batches of {}, precision {}", ranks, tensor,
                static_cast<int>(sharding), static_cast<int>(recompute), micro_batch, static_cast<int>(precision)));
            check(c);
          }
}

// Master weights and moments, weights to compute with, gradients: the buffers' own sizes.
TEST(StepCosts, StateTakesWhatLayoutAndShardsSay) {
  Communicator world = Communicator::world();
  for_all(world.size(), [&](const RunConfig& c) {
    Mesh mesh(world, c.parallel.tensor);
    const test::TinyData data = test::tiny_data(12);
    const TrainingState state(c, data.notes.prompt, mesh);
    const MeshPlace place = mesh.place();
    const int shards = c.parallel.sharding == Sharding::none ? 1 : place.data_ranks;
    const ParameterLayout layout(c.model, padded_vocabulary(40), {place.tensor_rank, place.tensor_ranks}, shards);
    const ShardMap map(layout, c.parallel.sharding, place.data_rank, place.data_ranks);
    EXPECT_EQ(Optimizer::memory_bytes(map), state.optimizer.memory_bytes());
    EXPECT_EQ(ModelWeights::memory_bytes(layout, map, c.compute()), state.weights.memory_bytes());
    EXPECT_EQ(Gradients::memory_bytes(layout, map), state.gradients.memory_bytes());
  });
}

// The arena's bound, asked with the sizes of the largest micro-batch. What it has too much: each of the maxima that it
// is made of is over micro-batches whose tokens, rows and labels may not be largest together, and ranks' shares are
// rounded up.
int64_t bound_of_arena(const Step& s) {
  const int parts = s.mesh.tensor.size();
  ArenaSizes sizes{.micro_batches = s.step.micro_batches(), .all_notes = s.sizes.all_notes};
  for (const auto& [batch, times] : s.sizes.micro_batches) {
    sizes.notes = std::max(sizes.notes, batch.notes);
    sizes.tokens = std::max(sizes.tokens, batch.tokens);
    sizes.hidden_rows = std::max(sizes.hidden_rows, batch.read_rows);
    sizes.labels = std::max(sizes.labels, batch.labels);
    sizes.own_labels += batch.labels;
    sizes.attention_floats =
        std::max(sizes.attention_floats, batch.unshared_tokens * config_of_part(s.config.model, parts).kv_dim());
  }
  sizes.part_notes = 2 * ceil_div(sizes.notes / 2, parts);
  sizes.own_notes = s.sizes.own_notes;
  return step_memory(s.config, padded_vocabulary(40), parts, sizes).arena();
}

TEST(StepCosts, AStepTakesAndSendsWhatIsPlanned) {
  Communicator world = Communicator::world();
  for_all(world.size(), [&](const RunConfig& c) {
    const Step s(c, world);
    ASSERT_EQ(planned(s), s.sent);
    ASSERT_EQ(s.sent.empty(), world.size() == 1);

    const int64_t used = s.step.arena().peak_bytes(), bound = bound_of_arena(s);
    EXPECT_LE(used, bound);
    EXPECT_GE(used, 0.7 * bound);

    // From the note table alone: what the buffers of state and arena really take.
    const MemoryPlan plan = plan_memory(c, note_statistics(c, s.data.notes, s.data.pairs), s.mesh.place());
    EXPECT_EQ(plan.total(), s.state.optimizer.memory_bytes() + s.state.weights.memory_bytes() +
                                s.state.gradients.memory_bytes() + s.step.arena().capacity_bytes());
    EXPECT_LE(used, plan.step.arena());
    // Over all ranks a checkpoint has each element once.
    const std::vector<int64_t> snapshots = world.all_gather("snapshots", plan.snapshot);
    EXPECT_EQ(std::accumulate(snapshots.begin(), snapshots.end(), int64_t{0}),
              3 * size_of(DType::f32) * parameter_count(c.model, padded_vocabulary(40)));
  });
}

TEST(StepCosts, TheLongestSequenceIsOneThatAStepDraws) {
  test::TinyData data = test::tiny_data(4);
  NoteTable& notes = data.notes;
  // No note has hashtags; note 0 has no category either, so that its sequence ends before [EMB].
  notes.hashtag_begin.assign(5, 0);
  notes.hashtag_last = notes.hashtag_inner = notes.category = {};
  for (int i = 0; i < 4; ++i) notes.category.push_back(std::vector<int32_t>(i == 0 ? 0 : 2, 8));
  const auto longest = [&](double alpha, size_t first_note_tokens) {
    notes.category_input = {};
    for (int i = 0; i < 4; ++i) notes.category_input.push_back(std::vector<int32_t>(i == 0 ? first_note_tokens : 2, 9));
    RunConfig c = tiny_config();
    c.loss.alpha = alpha;
    const Longest found = longest_sequence(c, notes);
    return std::pair(found.tokens, found.labels);
  };
  // 3 tokens of instruction, 2 of the note, [EMB], 2 of guidance, 2 of output; EOS is a label only.
  EXPECT_EQ(longest(0.1, 2), std::pair(int64_t{10}, int64_t{3}));
  EXPECT_EQ(longest(0, 2), std::pair(int64_t{5}, int64_t{0}));
  EXPECT_EQ(longest(0.1, 20), std::pair(int64_t{23}, int64_t{3}));
  EXPECT_THROW(longest(0.1, 62), Error);
}

// Work and memory of a rank's rows fall as 1/n, gathered vectors aside. 512 rows on n ranks: what each takes beyond the
// vectors of all and their gradients, and a tile of similarities (128 × 256) for each thread, is so many bytes a row.
TEST(StepCosts, InfonceFallsAsTheRanksGrow) {
  Communicator world = Communicator::world();
  const int64_t all = 512, d = 32, own = all / world.size();
  std::vector<int64_t> ids(all);
  std::iota(ids.begin(), ids.end(), 0);
  const std::vector<int64_t> rows_of(static_cast<size_t>(world.size()), own);
  Buffer memory(2 * own * d * 4);
  const Tensor both = memory.tensor(DType::f32, {2 * own, d}), z = both.slice(0, own), dz = both.slice(own, 2 * own);
  for (int64_t i = 0; i < own; ++i) z.as<float>()[i * d + i % d] = 1;
  Stream stream;
  Arena arena(1 << 24);
  Contrastive contrastive(true, ContrastiveGradient::exact, world.size());
  contrastive.run(stream, world, {ids, {}, rows_of}, z, 1, 1, dz, arena);
  const int64_t gathered = 2 * all * d * 4, tiles = omp_get_max_threads() * 128 * 256 * 4;
  // A row: its gradient as a column, log-sum-exp (f64), positive and similarity. A tile of 128 rows: a sum in f64.
  // Eight tensors are rounded up to 64 bytes.
  const int64_t of_rows = own * (d * 4 + 8 + 2 * 4) + (own + 127) / 128 * 8;
  EXPECT_GE(arena.peak_bytes() - gathered - tiles, of_rows);
  EXPECT_LE(arena.peak_bytes() - gathered - tiles, of_rows + 8 * 64);
  EXPECT_EQ(infonce_flops(own, all, d).total() * world.size(), infonce_flops(all, all, d).total());
}

}  // namespace
}  // namespace notellm
