// The whole step on a GPU against the CPU's: loss, every gradient, twenty steps, micro-batches, a resumed run. For any
// number of ranks.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <optional>
#include <random>

#include "runtime/files.h"
#include "runtime/gpu.h"
#include "tests/support/softgpu.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_notes.h"
#include "tests/support/whole_model.h"
#include "training/checkpoint.h"
#include "training/checkpoint_writer.h"
#include "training/state.h"
#include "training/step.h"

namespace notellm {
namespace {

// Sizes at which the kernels take their wide paths: rows of whole packs, a head of 64.
RunConfig tiny_config(Device device, Precision precision) {
  RunConfig c;
  c.seed = 5;
  c.device = device;
  c.precision = precision;
  c.model.dim = 32;
  c.model.layers = 3;
  c.model.heads = 2;
  c.model.kv_heads = 1;
  c.model.head_dim = 64;
  c.model.ffn = 48;
  c.model.note_dim = 16;
  c.model.context = 64;
  c.model.init.embedding_std = 0.5;  // far from the flat beginning, so that every gradient is of a size
  c.model.init.matrix_std = 0.15;
  c.model.init.tau = 1;
  c.loss.alpha = 0.5;
  c.loss.sampling_correction = SamplingCorrection::logq;
  c.optimizer.learning_rate = 1e-3;
  c.optimizer.warmup_steps = 2;
  c.train.pairs_per_step = 6;
  c.train.steps = 20;
  return c;
}

// Training on one device, as the trainer does it.
struct Training {
  RunConfig config;
  Mesh mesh;
  Stream stream;
  TrainingState state;
  TrainingStep step;
  int64_t next = 0;

  Training(const RunConfig& c, const test::TinyData& data, Communicator& ranks)
      : config(c),
        mesh(ranks, c.parallel.tensor),
        stream(c.device),
        state(config, data.notes.prompt, mesh),
        step(config, data.notes, data.pairs, mesh) {
    state.start_anew(config, data.notes.prompt);
    if (c.model.qkv_bias) randomize_biases();
  }
  // They begin as zero, which would hide that one is not added.
  void randomize_biases() {
    for (const Parameter& p : state.layout.all()) {
      if (p.kind != ParameterKind::bias) continue;
      std::vector<float> values(static_cast<size_t>(p.size()));
      for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(std::sin(1.0 + 3.0 * double(i)));
      copy(stream, Tensor::of(values.data(), {p.size()}), p.view(state.optimizer.weights()));
      stream.synchronize();
    }
    state.weights.refresh();
  }
  StepResult gradient() { return step.run(stream, next, state, state.tau(stream)); }
  Tensor gradients() const { return state.gradients.pieces()[0]; }  // without sharding all of them
  // Loss of the step, after which the weights have moved. change: of the gradients, in host memory.
  double advance(const std::function<void(Tensor)>& change = {}) {
    const double loss = gradient().loss;
    if (change) change(gradients());
    state.update(stream, learning_rate(config.optimizer, next, config.train.steps), next + 1);
    ++next;
    return loss;
  }
  std::vector<float> host(Tensor flat) {
    std::vector<float> values(flat.size());
    copy(stream, flat, Tensor::of(values.data(), {flat.size()}));
    stream.synchronize();
    return values;
  }
};

class StepCuda : public testing::Test {
 protected:
  Communicator ranks = Communicator::world();
  const test::TinyData data = test::tiny_data(12);
  StepCuda() { choose_device(Device::cuda, ranks.local_rank(), ranks.local_size()); }
};

double norm(const Parameter& p, const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (int64_t i = p.offset; i < p.offset + p.size(); ++i) sum += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
  return std::sqrt(sum);
}
double norm(const Parameter& p, const std::vector<float>& a) { return norm(p, a, std::vector<float>(a.size())); }

void expect_equal_results(const StepResult& gpu, const StepResult& cpu, double tolerance) {
  EXPECT_NEAR(gpu.loss, cpu.loss, tolerance * cpu.loss);
  EXPECT_NEAR(gpu.contrastive, cpu.contrastive, tolerance * cpu.contrastive);
  EXPECT_NEAR(gpu.token, cpu.token, tolerance * cpu.token);
  EXPECT_NEAR(gpu.positive_similarity, cpu.positive_similarity, tolerance);
  EXPECT_NEAR(gpu.negative_similarity, cpu.negative_similarity, tolerance);
  EXPECT_EQ(gpu.labels, cpu.labels);
}

// Sums of about 100 terms in another order, 2⁻²⁴ · √100 each, through some thirty ops.
constexpr double fp32_gradient_tolerance = 2e-5;

TEST_F(StepCuda, LossAndGradientsEqualTheCpusInFp32) {
  for (bool tied : {true, false})
    for (int micro_batch : {0, 1}) {
      RunConfig c = tiny_config(Device::cuda, Precision::fp32), on_cpu = tiny_config(Device::cpu, Precision::fp32);
      c.model.tied_head = on_cpu.model.tied_head = tied;
      c.model.qkv_bias = on_cpu.model.qkv_bias = !tied;
      c.train.micro_batch_pairs = micro_batch;
      Training gpu(c, data, ranks), cpu(on_cpu, data, ranks);
      const StepResult on_gpu = gpu.gradient();
      expect_equal_results(on_gpu, cpu.gradient(), 1e-5);
      const auto a = gpu.host(gpu.gradients()), b = cpu.host(cpu.gradients());
      for (const Parameter& p : cpu.state.layout.all()) {
        // τ's gradient is the mean over rows of Σ_j (p_j − [j is the positive]) · e^τ · cosine, whose terms nearly
        // cancel: what rounds are the terms, which add up to at most 2 · e^τ.
        const double size =
            p.kind == ParameterKind::temperature ? 2 * std::exp(c.model.init.tau) / (1 + c.loss.alpha) : norm(p, b);
        EXPECT_LT(norm(p, a, b), fp32_gradient_tolerance * size) << p.name;
      }
    }
}

// The rule for every op in bf16, for the whole step: what a GPU's gradient errs, against fp32, is at most twice what
// the CPU's errs in the same precision. Over some batches together, so that τ's, a single number each, is not small by
// luck.
void expect_bf16_errors_of_the_cpus_size(const RunConfig& c, const test::TinyData& data, Communicator& ranks) {
  RunConfig on_cpu = c, exact = c;
  on_cpu.device = exact.device = Device::cpu;
  on_cpu.attention = exact.attention = AttentionKernels::fused;
  exact.precision = Precision::fp32;
  Training gpu(c, data, ranks), cpu(on_cpu, data, ranks), fp32(exact, data, ranks);
  const std::vector<Parameter>& all = cpu.state.layout.all();
  std::vector<double> of_gpu(all.size()), of_cpu(all.size());
  double loss_of_gpu = 0, loss_of_cpu = 0;
  constexpr int batches = 16;
  for (int i = 0; i < batches; ++i) {
    gpu.next = cpu.next = fp32.next = i;
    const StepResult a = gpu.gradient(), b = cpu.gradient(), e = fp32.gradient();
    loss_of_gpu += (a.loss - e.loss) * (a.loss - e.loss);
    loss_of_cpu += (b.loss - e.loss) * (b.loss - e.loss);
    const auto x = gpu.host(gpu.gradients()), y = cpu.host(cpu.gradients()),
               z = fp32.host(fp32.gradients());
    for (size_t p = 0; p < all.size(); ++p) {
      of_gpu[p] += std::pow(norm(all[p], x, z), 2);
      of_cpu[p] += std::pow(norm(all[p], y, z), 2);
    }
  }
  EXPECT_LE(std::sqrt(loss_of_gpu), 2 * std::sqrt(loss_of_cpu));
  for (size_t p = 0; p < all.size(); ++p) EXPECT_LE(std::sqrt(of_gpu[p]), 2 * std::sqrt(of_cpu[p])) << all[p].name;
}

TEST_F(StepCuda, ErrsInBf16AsTheCpuDoes) {
  for (int micro_batch : {0, 2}) {
    RunConfig c = tiny_config(Device::cuda, Precision::bf16);
    c.train.micro_batch_pairs = micro_batch;
    c.model.qkv_bias = micro_batch == 2;
    expect_bf16_errors_of_the_cpus_size(c, data, ranks);
  }
}

// cuDNN has it from sm_90 on; all layers but the last.
TEST_F(StepCuda, AttentionByCudnn) {
  if (gpu::device_info().major < 9) GTEST_SKIP() << "needs sm_90; runs as such in test_step_cuda_sm_90";
  for (int micro_batch : {0, 2}) {
    RunConfig c = tiny_config(Device::cuda, Precision::bf16);
    c.attention = AttentionKernels::cudnn;
    c.train.share_prefix = false;
    c.train.micro_batch_pairs = micro_batch;
    expect_bf16_errors_of_the_cpus_size(c, data, ranks);
  }
}

// Losses of twenty steps, with the gradient of each parameter changed by `noise` of its norm in a random direction.
std::vector<double> losses(const RunConfig& c, const test::TinyData& data, Communicator& ranks, double noise = 0,
                           unsigned seed = 0) {
  Training training(c, data, ranks);
  std::mt19937 generator(seed);  // the same on all ranks
  std::normal_distribution<double> normal;
  const auto change = [&](Tensor gradients) {
    const std::vector<float> before = training.host(gradients);
    for (const Parameter& p : training.state.layout.all()) {
      const double size = noise * norm(p, before) / std::sqrt(static_cast<double>(p.size()));
      for (float& g : gradients.slice(p.offset, p.offset + p.size()).span<float>())
        g += static_cast<float>(size * normal(generator));
    }
  };
  std::vector<double> all;
  for (int i = 0; i < 20; ++i) all.push_back(training.advance(noise > 0 ? change : std::function<void(Tensor)>()));
  return all;
}

// The GPU's losses leave the CPU's no further than the CPU's own do when its gradients err as much as one step's may:
// the tolerance above.
TEST_F(StepCuda, TwentyStepsGoTheCpusWay) {
  const RunConfig on_gpu = tiny_config(Device::cuda, Precision::fp32),
                  on_cpu = tiny_config(Device::cpu, Precision::fp32);
  const auto gpu = losses(on_gpu, data, ranks), cpu = losses(on_cpu, data, ranks);
  std::vector<double> allowed(gpu.size());
  for (unsigned seed = 1; seed <= 4; ++seed) {
    const auto noisy = losses(on_cpu, data, ranks, fp32_gradient_tolerance, seed);
    for (size_t i = 0; i < noisy.size(); ++i)
      allowed[i] = std::max({allowed[i], std::abs(noisy[i] - cpu[i]), i > 0 ? allowed[i - 1] : 1e-5 * cpu[0]});
  }
  for (size_t i = 0; i < gpu.size(); ++i) EXPECT_NEAR(gpu[i], cpu[i], allowed[i]) << "step " << i;
  EXPECT_LT(gpu.back(), gpu.front());
}

TEST_F(StepCuda, TwentyStepsErrInBf16AsTheCpus) {
  const auto exact = losses(tiny_config(Device::cpu, Precision::fp32), data, ranks);
  double errors[2] = {};
  for (Device device : {Device::cpu, Device::cuda}) {
    const auto bf16 = losses(tiny_config(device, Precision::bf16), data, ranks);
    for (size_t i = 0; i < bf16.size(); ++i) errors[device == Device::cuda] += std::pow(bf16[i] - exact[i], 2);
  }
  EXPECT_LE(std::sqrt(errors[1]), 2 * std::sqrt(errors[0]));
}

// Every way of sharing the model out over GPUs, in fp32: what one GPU computes, as test_step holds it on the CPU.
TEST_F(StepCuda, SameForAnyMeshShardingAndRecomputation) {
  Communicator self = Communicator::self();
  RunConfig c = tiny_config(Device::cuda, Precision::fp32);
  c.model.layers = 4;  // more than are held at once
  const ParameterLayout whole(c.model, padded_vocabulary(data.notes.prompt.vocabulary));
  const auto gradients_of = [&](Training& t, std::vector<float>& all) {
    std::vector<float> pieces;
    for (const Tensor& piece : t.state.gradients.pieces()) {
      const std::vector<float> host = t.host(piece);
      pieces.insert(pieces.end(), host.begin(), host.end());
    }
    all.resize(static_cast<size_t>(whole.size()));
    test::put_together(t.state, whole, Tensor::of(pieces.data(), {std::ssize(pieces)}),
                       Tensor::of(all.data(), {whole.size()}));
  };
  Training alone(c, data, self);
  const StepResult expected = alone.gradient();
  std::vector<float> a, b;
  gradients_of(alone, b);
  for (int tensor = 1; tensor <= ranks.size(); tensor *= 2)
    for (Sharding sharding : {Sharding::none, Sharding::optimizer, Sharding::gradients, Sharding::parameters}) {
      RunConfig split = c;
      split.parallel = {tensor, sharding, sharding == Sharding::none ? Recompute::none : Recompute::layer};
      split.train.micro_batch_pairs = sharding == Sharding::gradients ? 2 : 0;
      Training together(split, data, ranks);
      SCOPED_TRACE(fmt::format("tensor {}, sharding {}", tensor, static_cast<int>(sharding)));
      EXPECT_NEAR(together.gradient().loss, expected.loss, 1e-5 * expected.loss);
      gradients_of(together, a);
      for (const Parameter& p : whole.all()) {
        const double size = p.kind == ParameterKind::temperature ? 2 * std::exp(c.model.init.tau) / (1 + c.loss.alpha)
                                                                 : norm(p, b);
        EXPECT_LT(norm(p, a, b), 1e-5 * size) << p.name;
      }
      // And on: the update, and the weights gathered again.
      together.next = 0;
      const double first = together.advance(), second = together.advance();
      Training once(c, data, self);
      EXPECT_NEAR(first, once.advance(), 1e-5 * first);
      EXPECT_NEAR(second, once.advance(), 1e-5 * second);
    }
}

TEST_F(StepCuda, SameBitsAgain) {
  RunConfig c = tiny_config(Device::cuda, Precision::bf16);
  c.train.micro_batch_pairs = 1;
  Training a(c, data, ranks), b(c, data, ranks);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(a.advance(), b.advance());
  EXPECT_EQ(a.host(a.state.optimizer.weights()), b.host(b.state.optimizer.weights()));
}

// From a checkpoint that a GPU wrote, on the GPU to the bit; and what a GPU writes, the CPU reads.
TEST_F(StepCuda, GoesOnFromACheckpoint) {
  std::optional<test::TempDir> owner;  // rank 0's
  if (ranks.rank() == 0) owner.emplace();
  const std::filesystem::path folder = ranks.broadcast("folder", owner ? owner->path().string() : std::string(), 0);
  RunConfig c = tiny_config(Device::cuda, Precision::bf16);
  c.train.run = folder / "run";
  c.data.shards = folder;
  if (ranks.rank() == 0) write_file(folder / "tokenizer.model", "no tokenizer");
  ranks.barrier("tokenizer");
  Training whole(c, data, ranks), resumed(c, data, ranks);
  for (int i = 0; i < 2; ++i) whole.advance();
  CheckpointWriter writer(c, data.notes, whole.state);
  writer.begin(whole.stream, {2, 2, 0});
  writer.finish();
  const CheckpointInfo checkpoint = verify_checkpoint(find_checkpoint(c.train.run));
  load_state(checkpoint, resumed.state.layout, resumed.state.shards, resumed.state.optimizer);
  resumed.state.weights.refresh();
  resumed.next = 2;
  for (int i = 0; i < 2; ++i) EXPECT_EQ(whole.advance(), resumed.advance());
  EXPECT_EQ(whole.host(whole.state.optimizer.weights()), resumed.host(resumed.state.optimizer.weights()));

  Training cpu(tiny_config(Device::cpu, Precision::bf16), data, ranks);
  load_state(checkpoint, cpu.state.layout, cpu.state.shards, cpu.state.optimizer);
  cpu.state.weights.refresh();
  EXPECT_EQ(cpu.state.tau(cpu.stream), [&] {
    const Tensor flat = cpu.state.optimizer.weights();
    return *cpu.state.layout.at("note_head.tau").view(flat).as<float>();
  }());
  ranks.barrier("end of test");
}

// The products that cuBLASLt is asked for are those of batch_flops, which counts the label rows alone for the LM head,
// the note rows alone for the vectors, and in the last layer, keys and values aside, these rows alone: nothing else is
// computed.
TEST_F(StepCuda, ProductsOfRowsThatAreReadAlone) {
  if (!softgpu_support::present()) GTEST_SKIP() << "counted by softgpu";
  if (ranks.size() > 1) GTEST_SKIP() << "counted on one rank";
  for (int micro_batch : {0, 2}) {
    RunConfig c = tiny_config(Device::cuda, Precision::bf16);
    c.train.micro_batch_pairs = micro_batch;
    Training training(c, data, ranks);
    softgpu_support::reset_counters();
    const StepFlops flops = training.gradient().flops;
    training.stream.synchronize();
    softgpu::Counters products;
    ASSERT_TRUE(softgpu_support::counters("cublasLtMatmul", products));
    EXPECT_EQ(static_cast<double>(products.product_flops), flops.layers + flops.heads);
  }
}

// Launches of kernels and library calls that one layer more costs in a step of two micro-batches, or of one.
int64_t launches_of_a_layer(const test::TinyData& data, Communicator& ranks, int micro_batch_pairs) {
  int64_t launches[2];
  for (int i = 0; i < 2; ++i) {
    RunConfig c = tiny_config(Device::cuda, Precision::bf16);
    c.model.layers = 3 + i;
    c.train.micro_batch_pairs = micro_batch_pairs;
    Training training(c, data, ranks);
    softgpu_support::reset_counters();
    training.gradient();
    training.stream.synchronize();
    softgpu::Counters all;
    EXPECT_TRUE(softgpu_support::counters("", all));
    launches[i] = static_cast<int64_t>(all.launches);
  }
  return launches[1] - launches[0];
}

// A step of one micro-batch goes forward and backward through each layer once; one of two micro-batches goes forward
// twice for the vectors, then forward and backward twice.
TEST_F(StepCuda, LaunchesOfALayer) {
  if (!softgpu_support::present()) GTEST_SKIP() << "counted by softgpu";
  if (ranks.size() > 1) GTEST_SKIP() << "counted on one rank";
  const int64_t once = launches_of_a_layer(data, ranks, 0), twice = launches_of_a_layer(data, ranks, 3);
  ASSERT_EQ(twice % 2, 0);
  const int64_t forward = twice / 2 - once, backward = once - forward;
  std::printf("launches of a layer: %d forward, %d backward\n", static_cast<int>(forward), static_cast<int>(backward));
  EXPECT_GT(forward, 0);
  EXPECT_LE(forward, 14);
  EXPECT_LE(backward, 24);
}

}  // namespace
}  // namespace notellm
