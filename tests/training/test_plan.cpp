// Plans, the network and the roofline against numbers worked out by hand. What a plan says of memory and bytes is held
// against real steps in test_step_costs.
#include <gtest/gtest.h>

#include <cmath>
#include <ctime>

#include "tests/support/expect_error.h"
#include "tests/support/tiny_notes.h"
#include "training/plan_search.h"

namespace notellm {
namespace {

RunConfig llama(int dim, int layers, int heads, int ffn) {
  RunConfig c;
  c.device = Device::cuda;
  c.precision = Precision::bf16;
  c.model.dim = dim;
  c.model.layers = layers;
  c.model.heads = c.model.kv_heads = heads;
  c.model.head_dim = dim / heads;
  c.model.ffn = ffn;
  c.model.note_dim = 128;
  c.model.context = 512;
  c.model.tied_head = false;
  c.train.pairs_per_step = 64;
  return c;
}
RunConfig llama_7b() { return llama(4096, 32, 32, 11008); }

// Notes of 100 tokens and 5 labels, with nothing shared.
NoteStatistics plain_notes() {
  NoteStatistics notes;
  notes.vocabulary = 32064;
  notes.longest = {150, 8};
  notes.unshared = {.notes = 10,
                    .labels = 50,
                    .tokens = 1000,
                    .unshared_tokens = 1000,
                    .read_rows = 60,
                    .keys = 10 * 5050,
                    .read_keys = 5000,
                    .note_keys = 900};
  notes.shared = notes.unshared;
  return notes;
}

TEST(Plan, ParametersOfLlama2) {
  // The note head aside: note_dim rows of dim, and tau.
  EXPECT_EQ(parameter_count(llama_7b().model, 32000) - 128 * 4096 - 1, 6738415616);
  EXPECT_EQ(parameter_count(llama(5120, 40, 40, 13824).model, 32000) - 128 * 5120 - 1, 13015864320);
}

// The formulas of docs/parallelism.md: P parameters of a tensor rank, of them E in no layer and L in each; D data
// ranks.
TEST(Plan, StateFollowsTheFormulas) {
  const NoteStatistics notes = plain_notes();
  for (Precision precision : {Precision::fp32, Precision::bf16})
    for (int tensor : {1, 4})
      for (int data : {1, 2, 64}) {
        RunConfig c = llama_7b();
        c.precision = precision;
        c.parallel.tensor = tensor;
        c.train.pairs_per_step = 64;
        const MeshPlace place{.data_ranks = data, .tensor_ranks = tensor};
        const double matrices = 4 * 4096.0 * 4096 + 3 * 4096.0 * 11008, L = matrices / tensor + 2 * 4096;
        const double E = 2 * 32064 * 4096.0 / tensor + 128 * 4096 + 4096, P = 32 * L + E, D = data;
        const double w = precision == Precision::bf16 ? 2 : 4, narrow = precision == Precision::bf16;
        const auto state = [&](Sharding sharding) {
          c.parallel.sharding = sharding;
          return static_cast<double>(plan_memory(c, notes, place).state());
        };
        const auto expect = [&](Sharding sharding, double bytes) {
          EXPECT_NEAR(state(sharding) / bytes, 1, 0.03)
              << "sharding " << static_cast<int>(sharding) << " tensor " << tensor << " data " << data;
        };
        expect(Sharding::none, (12 + narrow * 2 + 4) * P);
        expect(Sharding::optimizer, 12 * P / D + (w + 4) * P);
        expect(Sharding::gradients, 16 * P / D + 4 * (2 * L + E) + w * P);
        expect(Sharding::parameters, (16 + narrow * 2) * P / D + 4 * (2 * L + E) + w * (3 * L + E));
      }
}

TEST(Plan, ExpectsOfNotesWhatWasCounted) {
  const test::TinyData data = test::tiny_data(40);
  RunConfig c;
  c.model.context = 64;
  const NoteStatistics notes = note_statistics(c, data.notes, data.pairs);
  const BatchCounts again = notes.expected(notes.shared.notes);
  EXPECT_EQ(again.tokens, notes.shared.tokens);
  EXPECT_EQ(again.labels, notes.shared.labels);
  EXPECT_EQ(again.read_rows, notes.shared.read_rows);
  EXPECT_NEAR(again.keys, notes.shared.keys, 1e-9 * notes.shared.keys);
  EXPECT_LT(notes.shared.tokens, notes.unshared.tokens);
  // A beginning that is there once, however many notes share it.
  EXPECT_EQ(notes.expected(2 * notes.shared.notes).tokens, 2 * notes.shared.tokens - notes.prefix_tokens);
  EXPECT_EQ(notes.expected(1).tokens, std::llround(double(notes.unshared.tokens) / double(notes.unshared.notes)));
  EXPECT_EQ(notes.vocabulary, padded_vocabulary(data.notes.prompt.vocabulary));
}

TEST(Plan, SaysWhatARunWouldSay) {
  RunConfig c = llama_7b();
  c.parallel.tensor = 3;
  EXPECT_ERROR(usage, "model.heads 32 does not divide by parallel.tensor 3; nearest that do: 30 and 33",
               make_plan(c, plain_notes(), {.data_ranks = 1, .tensor_ranks = 3}));
  c.parallel.tensor = 1;
  EXPECT_ERROR(usage, "train.pairs_per_step 64 is fewer than the 65 ranks",
               make_plan(c, plain_notes(), {.data_ranks = 65}));
}

ClusterConfig cluster_of(int nodes) {
  ClusterConfig cluster;
  cluster.nodes = nodes;
  cluster.nvlink = {100, 2};
  cluster.network = {80, 10};
  cluster.attainable = {1, 1, 1, 1};
  return cluster;
}

// 8 ranks of one node: 7 steps of 2 µs, and what leaves the rank at 100 GB/s.
TEST(Network, RingInANode) {
  const GroupLinks group = group_links(cluster_of(1), 8, 1);
  EXPECT_EQ(group.nodes, 1);
  const double gather = collective_seconds(group, {"", CollectiveKind::gather, 700'000'000, 1});
  EXPECT_DOUBLE_EQ(gather, 7 * 2e-6 + 7e8 / 100e9);
  EXPECT_DOUBLE_EQ(collective_seconds(group, {"", CollectiveKind::reduce_scatter, 700'000'000, 3}),
                   3 * 7 * 2e-6 + 7e8 / 100e9);
}

// 2(n − 1)/n · B / bandwidth + 2(n − 1) α; in one node a tree has no fewer steps, and sends more.
TEST(Network, AllReduceInANode) {
  const double bytes = 8e8;
  EXPECT_DOUBLE_EQ(collective_seconds(group_links(cluster_of(1), 8, 1),
                                      {"", CollectiveKind::all_reduce, static_cast<int64_t>(2 * 7 / 8.0 * bytes), 1}),
                   2 * 7 / 8.0 * bytes / 100e9 + 2 * 7 * 2e-6);
}

// 8 nodes of 8: the ring leaves a node 7 times, over all its network cards (80 GB/s). A small sum goes by tree: 7 steps
// in the node and log2(8) between nodes, up and down.
TEST(Network, AcrossNodes) {
  const GroupLinks group = group_links(cluster_of(8), 64, 1);
  EXPECT_EQ(group.nodes, 8);
  EXPECT_DOUBLE_EQ(group.bytes_per_second, 80e9);
  EXPECT_DOUBLE_EQ(collective_seconds(group, {"", CollectiveKind::gather, 80'000'000, 1}),
                   56 * 2e-6 + 7 * 10e-6 + 1e-3);
  const double small = collective_seconds(group, {"", CollectiveKind::all_reduce, 126, 1});
  EXPECT_DOUBLE_EQ(small, 2 * (7 * 2e-6 + 3 * 10e-6) + 2 * 64 / 80e9);
  const double large = collective_seconds(group, {"", CollectiveKind::all_reduce, 126 * 80'000'000LL, 1});
  EXPECT_DOUBLE_EQ(large, 2 * (56 * 2e-6 + 7 * 10e-6) + 126 * 8e7 / 80e9);
}

// Tensor groups of 4: two data groups' ranks … 4 apart have 2 of a node's 8 cards' bandwidth each.
TEST(Network, GroupsShareANodesNetwork) {
  const GroupLinks data = group_links(cluster_of(8), 16, 4), tensor = group_links(cluster_of(8), 4, 1);
  EXPECT_EQ(data.nodes, 8);
  EXPECT_DOUBLE_EQ(data.bytes_per_second, 80e9 * 2 / 8);
  EXPECT_EQ(tensor.nodes, 1);
  EXPECT_DOUBLE_EQ(tensor.bytes_per_second, 100e9);
  EXPECT_EQ(collective_seconds(group_links(cluster_of(8), 1, 1), {"", CollectiveKind::gather, 0, 1}), 0);
}

double part(const Prediction& p, const std::string& name) {
  for (const Prediction::Part& part : p.parts)
    if (part.name == name) return part.seconds;
  ADD_FAILURE() << "no part " << name;
  return 0;
}
Prediction predicted(const RunConfig& c, const ClusterConfig& cluster, int ranks) {
  const NoteStatistics notes = plain_notes();
  const MeshPlace place{
      .data_ranks = ranks / c.parallel.tensor, .tensor_ranks = c.parallel.tensor, .tensor_rank = c.parallel.tensor - 1};
  return predict(c, notes, make_plan(c, notes, place), cluster);
}

// Where memory and links cost nothing, a step is its operations over the peak, and MFU is what is not repeated of them.
TEST(Prediction, OfOperationsAlone) {
  RunConfig c = llama_7b();
  ClusterConfig cluster = cluster_of(1);
  cluster.gpu.bf16_tflops = cluster.gpu.fp32_tflops = 100;
  cluster.gpu.memory_gbs = 1e30;
  cluster.nvlink = {1e30, 0};
  for (int micro_batch : {0, 2})
    for (Recompute recompute : {Recompute::none, Recompute::layer}) {
      c.train.micro_batch_pairs = micro_batch;
      c.parallel.recompute = recompute;
      const StepFlops flops = make_plan(c, plain_notes(), {.data_ranks = 8}).flops;
      const Prediction p = predicted(c, cluster, 8);
      // The note vectors' product of a first pass is not counted: 10⁻⁵ of a step.
      EXPECT_NEAR(p.seconds(), flops.total() / (8 * 100e12), 1e-4 * p.seconds());
      EXPECT_NEAR(p.mfu, flops.model() / flops.total(), 1e-4);
      EXPECT_NEAR(p.notes_per_second * p.seconds(), 128, 1e-9);
    }
}

// Where operations cost nothing, weights are read in each pass, and their gradients read and written.
TEST(Prediction, OfMemoryAlone) {
  RunConfig c = llama_7b();
  c.train.pairs_per_step = 1;
  ClusterConfig cluster = cluster_of(1);
  cluster.gpu.bf16_tflops = cluster.gpu.fp32_tflops = 1e30;
  cluster.gpu.memory_gbs = 1000;
  const Prediction p = predicted(c, cluster, 1);
  const double layers = 32 * (4 * 4096.0 * 4096 + 3 * 4096.0 * 11008 + 2 * 4096), tokens = 200;
  const double operands = tokens * 32 * (5 * 4096 + 3 * 4096 + 4096 + 3 * 11008.0);  // of a pass
  EXPECT_NEAR(part(p, "products of the layers"), ((3 * 2 + 8) * layers + 3 * 2 * operands) / 1e12, 1e-9);
  // 20.06 · dim elements forward and 32.1 · dim backward at ffn = 2.6875 · dim
  // AdamW: the gradient twice, weight and two moments read and written, a bf16 weight; before the step a zero gradient.
  const double all = layers + 2 * 32064 * 4096.0 + 4096 + 128 * 4096 + 1;
  EXPECT_NEAR(part(p, "optimizer"), all * (2 * 4 + 6 * 4 + 2 + 4) / 1e12, 1e-6);
  EXPECT_NEAR(part(p, "norms, RoPE, SwiGLU"), tokens * 32 * (20 + 9 * 2.6875 + 8) * 4096 * 2 / 1e12, 1e-9);
}

// A sum of gradients that is faster than the backward pass leaves the last layer's and what is in no layer; one that
// takes far longer leaves all but what the backward pass hides.
TEST(Prediction, SumsOfGradientsHideBehindTheBackwardPass) {
  RunConfig c = llama_7b();
  ClusterConfig cluster = cluster_of(1);
  cluster.gpu.bf16_tflops = 10;
  cluster.gpu.memory_gbs = 1e30;
  cluster.nvlink = {1000, 0};
  const double layer = 4 * 4096.0 * 4096 + 3 * 4096.0 * 11008 + 2 * 4096, rest = 2 * 32064 * 4096.0;
  const auto sum = [&](double elements) { return 2 * 7 / 8.0 * 4 * elements / (1e9 * cluster.nvlink.gbs); };
  EXPECT_NEAR(part(predicted(c, cluster, 8), "sums of gradients, not hidden"), sum(layer + rest),
              0.01 * sum(layer + rest));
  cluster.nvlink.gbs = 5;
  const Prediction slow = predicted(c, cluster, 8);
  const double backward = 2.0 / 3 * part(slow, "products of the layers") + 2.5 / 3.5 * part(slow, "attention");
  const double expected = sum(32 * layer + rest) - 31.0 / 32 * backward;
  EXPECT_NEAR(part(slow, "sums of gradients, not hidden"), expected, 1e-3 * expected);
}

TEST(Prediction, GathersOfParametersHideBehindTheLayerBefore) {
  RunConfig c = llama_7b();
  c.parallel.sharding = Sharding::parameters;
  ClusterConfig cluster = cluster_of(1);
  cluster.gpu.bf16_tflops = 10;
  cluster.nvlink = {1000, 0};
  const double layer = 4 * 4096.0 * 4096 + 3 * 4096.0 * 11008, rest = 2 * 32064 * 4096.0;
  // The first layer's, and after the update those of what is in no layer.
  const double expected = 7 / 8.0 * 2 * (layer + rest) / 1e12;
  EXPECT_NEAR(part(predicted(c, cluster, 8), "gathers of parameters, not hidden"), expected, 0.01 * expected);
}

TEST(PlanSearch, BestFirstAndOnlyWhatFits) {
  RunConfig c = llama_7b();
  ClusterConfig cluster;
  cluster.gpu.memory_gib = 40;
  c.train.pairs_per_step = 512;  // activations that decide
  const PlanSearch search = search_plans(c, plain_notes(), cluster, 8);
  ASSERT_FALSE(search.choices.empty());
  EXPECT_EQ(search.tried, search.too_large + std::ssize(search.choices));
  EXPECT_GT(search.too_large, 0);
  double before = 0;
  for (const Choice& choice : search.choices) {
    EXPECT_LE(choice.memory.total(), (40 - cluster.gpu.reserved_gib) * (1 << 30));
    EXPECT_GE(choice.prediction.seconds(), before);
    EXPECT_EQ(choice.data_ranks * choice.parallel.tensor, 8);
    before = choice.prediction.seconds();
  }
  cluster.gpu.memory_gib = 4;
  const PlanSearch none = search_plans(c, plain_notes(), cluster, 8);
  EXPECT_TRUE(none.choices.empty());
  EXPECT_GT(none.smallest, int64_t{1} << 30);
}

TEST(PlanSearch, FourThousandGpusInTwoSeconds) {
  RunConfig c = llama(5120, 40, 40, 13824);
  c.train.pairs_per_step = 32768;
  ClusterConfig cluster;
  cluster.nodes = 512;
  const std::clock_t begin = std::clock();  // of this process, whatever else the machine does
  const PlanSearch search = search_plans(c, plain_notes(), cluster, 4096);
  EXPECT_LT(std::clock() - begin, 2 * CLOCKS_PER_SEC);
  EXPECT_GT(std::ssize(search.choices), 10);
}

}  // namespace
}  // namespace notellm
