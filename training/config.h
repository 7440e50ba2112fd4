// The configuration of a run: one YAML file, of which every command reads what it needs.
#pragma once

#include <filesystem>
#include <string>

#include "data_pipeline/prepare.h"
#include "losses/contrastive.h"
#include "model/config.h"
#include "runtime/config.h"
#include "runtime/device.h"
#include "training/sharding.h"

namespace notellm {

enum class Precision { fp32, bf16 };
enum class AttentionKernels { fused, cudnn };
enum class SamplingCorrection { none, logq };
enum class Schedule { linear, cosine };
enum class Recompute { none, layer };

struct LossConfig {
  double alpha = 0.01;
  double hashtag_share = 0.4;
  bool random_topics = true;
  SamplingCorrection sampling_correction = SamplingCorrection::none;
  bool mask_known = true;
  ContrastiveGradient gradient = ContrastiveGradient::exact;
  void fields(Fields& f);
};

struct OptimizerConfig {
  double learning_rate = 1e-4;
  double embedding_scale = 1;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double weight_decay = 0.01;
  double clip = 1;
  int warmup_steps = 50;
  Schedule schedule = Schedule::linear;
  double final_share = 0.03;
  void fields(Fields& f);
};

struct TrainConfig {
  std::string run = "runs/default";
  int steps = 1000;
  int pairs_per_step = 64;
  int micro_batch_pairs = 0;
  bool share_prefix = true;
  int log_every = 10;
  int checkpoint_every = 200;
  int keep_checkpoints = 3;
  int keep_every = 0;
  int most_failed_checkpoints = 3;
  int evaluate_every = 0;
  int evaluate_pairs = 1000;
  int most_skipped_steps = 10;
  double watchdog_seconds = 600;
  void fields(Fields& f);
};

struct ParallelConfig {
  int tensor = 1;
  Sharding sharding = Sharding::none;
  Recompute recompute = Recompute::none;
  void fields(Fields& f);
};

struct EvaluateConfig {
  int batch_notes = 256;
  int low_exposure_below = 0;
  void fields(Fields& f);
};

struct RunConfig {
  int64_t seed = 1;
  Device device = Device::cpu;
  Precision precision = Precision::fp32;
  AttentionKernels attention = AttentionKernels::fused;
  int threads = 0;
  PrepareConfig data;
  ModelConfig model;
  LossConfig loss;
  OptimizerConfig optimizer;
  TrainConfig train;
  ParallelConfig parallel;
  EvaluateConfig evaluate;
  void fields(Fields& f);

  DType compute() const { return precision == Precision::bf16 ? DType::bf16 : DType::f32; }
};

// Reads file and overrides, and checks what depends on several keys. With model.from the sizes of the model are those
// of that checkpoint. Throws Error(usage); with model.from, as find_checkpoint and read_config_for_model do.
RunConfig read_run_config(const std::string& path, const std::vector<std::string>& overrides);
// … as a checkpoint keeps it: model.from, which may be gone by now, is not looked at.
RunConfig read_saved_config(const std::filesystem::path& path);
// … for a model that is there already: what it has decides the keys of `model`, but init, export_type, from and, where
// it has no note head, note_dim. Throws Error(usage) naming key and both values where one that was given disagrees.
RunConfig read_config_for_model(const std::string& path, const std::vector<std::string>& overrides,
                                const ModelConfig& model, const std::string& model_name, bool has_note_head);
// The effective configuration as YAML text.
std::string print_run_config(RunConfig config);

}  // namespace notellm
