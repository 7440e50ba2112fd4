#include "training/config.h"

#include <algorithm>

#include "training/checkpoint_folder.h"

namespace notellm {

void LossConfig::fields(Fields& f) {
  f.add("alpha", "weight of the token loss: (contrastive + alpha·token) / (1 + alpha); 0: none", alpha, at_least(0));
  f.add("hashtag_share", "share of the notes that get the hashtag task, the rest the category task", hashtag_share,
        between(0, 1));
  f.add("random_topics", "hashtag task: a random number j of topics; false: j = 1", random_topics);
  f.add("sampling_correction", "logq: minus the log of a column's sampling probability", sampling_correction,
        {{"none", SamplingCorrection::none}, {"logq", SamplingCorrection::logq}});
  f.add("mask_known", "leave out negatives that are the same note or a known positive", mask_known);
  f.add("gradient",
        "exact, or the authors' released_code (contrastive gradient of the encoder / ranks; for comparison)", gradient,
        {{"exact", ContrastiveGradient::exact}, {"released_code", ContrastiveGradient::released_code}});
}

void OptimizerConfig::fields(Fields& f) {
  f.add("learning_rate", "AdamW: highest learning rate", learning_rate, between(0, 10));
  f.add("embedding_scale", "factor on the learning rate of the embeddings (tokens; an untied head too)",
        embedding_scale, at_least(0));
  f.add("beta1", "AdamW: decay of the first moment", beta1, between(0, 0.9999999));
  f.add("beta2", "AdamW: decay of the second moment", beta2, between(0, 0.9999999));
  f.add("eps", "AdamW: epsilon", eps, between(1e-20, 1));
  f.add("weight_decay", "AdamW: decoupled weight decay of matrices and embeddings", weight_decay, at_least(0));
  f.add("clip", "largest global norm of the gradient, 0: no clipping", clip, at_least(0));
  f.add("warmup_steps", "steps of linear warm-up", warmup_steps, at_least(0));
  f.add("schedule", "after the warm-up", schedule, {{"linear", Schedule::linear}, {"cosine", Schedule::cosine}});
  f.add("final_share", "share of the learning rate at the last step", final_share, between(0, 1));
}

void TrainConfig::fields(Fields& f) {
  f.add("run", "folder of the run: checkpoints, metrics, effective config", run);
  f.add("steps", "optimizer steps", steps, at_least(1));
  f.add("pairs_per_step", "pairs of one optimizer step, over all ranks", pairs_per_step, at_least(1));
  f.add("micro_batch_pairs",
        "most pairs that a rank computes at once, 0: all; smaller: less memory, a second forward pass",
        micro_batch_pairs, at_least(0));
  f.add("share_prefix", "compute the beginning that prompts share once", share_prefix);
  f.add("log_every", "steps between progress lines", log_every, at_least(1));
  f.add("checkpoint_every", "steps between checkpoints (one is always written at the end)", checkpoint_every,
        at_least(1));
  f.add("keep_checkpoints", "how many of the newest checkpoints stay", keep_checkpoints, at_least(1));
  f.add("keep_every", "checkpoints of steps that are multiples of this stay too, 0: none", keep_every, at_least(0));
  f.add("most_failed_checkpoints", "stop after so many checkpoints in a row that could not be written",
        most_failed_checkpoints, at_least(1));
  f.add("evaluate_every", "steps between evaluations on a sample, 0: none", evaluate_every, at_least(0));
  f.add("evaluate_pairs", "test pairs of that sample", evaluate_pairs, at_least(1));
  f.add("most_skipped_steps", "stop after so many steps in a row with NaN or Inf", most_skipped_steps, at_least(1));
  f.add("watchdog_seconds", "a collective that takes longer ends the run, 0: never", watchdog_seconds, at_least(0));
}

void ParallelConfig::fields(Fields& f) {
  f.add("tensor", "ranks, neighbours, that hold one model between them; the others share the notes", tensor,
        between(1, 64));
  f.add("sharding", "what data ranks keep a share of: nothing; optimizer state; gradients too; parameters too",
        sharding,
        {{"none", Sharding::none},
         {"optimizer", Sharding::optimizer},
         {"gradients", Sharding::gradients},
         {"parameters", Sharding::parameters}});
  f.add("recompute", "layer: keep a layer's input alone, and compute the layer again in the backward pass", recompute,
        {{"none", Recompute::none}, {"layer", Recompute::layer}});
}

void EvaluateConfig::fields(Fields& f) {
  f.add("batch_notes", "notes that are embedded at once", batch_notes, at_least(1));
  f.add("low_exposure_below", "low exposure: targets with fewer training clicks than this; 0: their median",
        low_exposure_below, at_least(0));
}

void RunConfig::fields(Fields& f) {
  f.add("seed", "of initial values, order of data, tasks", seed, at_least(0));
  f.add("device", "cpu, or cuda: one NVIDIA GPU a rank", device, {{"cpu", Device::cpu}, {"cuda", Device::cuda}});
  f.add("precision", "fp32, or bf16 with f32 master weights, moments, softmax, norms, losses", precision,
        {{"fp32", Precision::fp32}, {"bf16", Precision::bf16}});
  f.add("attention",
        "of training on CUDA: fused, the program's own kernels; or cudnn, NVIDIA's, in bf16, from sm_90 on", attention,
        {{"fused", AttentionKernels::fused}, {"cudnn", AttentionKernels::cudnn}});
  f.add("threads", "threads of a rank, 0: the cores that it may use, shared out over the ranks of its host", threads,
        at_least(0));
  f.section("data", data);
  f.section("model", model);
  f.section("loss", loss);
  f.section("optimizer", optimizer);
  f.section("train", train);
  f.section("parallel", parallel);
  f.section("evaluate", evaluate);
}

namespace {

void check(const RunConfig& config) {
  if (config.attention != AttentionKernels::cudnn) return;
  if (config.device != Device::cuda) fail(ErrorKind::usage, "attention: cudnn needs device: cuda");
  if (config.precision != Precision::bf16)
    fail(ErrorKind::usage, "attention: cudnn computes in bf16 only: set precision: bf16");
  if (config.train.share_prefix)
    fail(ErrorKind::usage, "attention: cudnn knows no shared prefixes: set train.share_prefix: false");
}

// Keys that a model which is there does not decide.
bool is_free(const std::string& key, bool has_note_head) {
  return !key.starts_with("model.") || key.starts_with("model.init.") || key == "model.from" ||
         key == "model.export_type" || (key == "model.note_dim" && !has_note_head);
}

// `fields` are those of `config`.
void take_model(RunConfig& config, const Fields& fields, const ModelConfig& model, const std::string& name,
                bool has_note_head) {
  RunConfig other;
  other.model = model;
  Fields decided;
  other.fields(decided);
  for (size_t i = 0; i < fields.all().size(); ++i) {
    const Fields::Field &ours = fields.all()[i], &theirs = decided.all()[i];
    const bool derived = ours.path == "model.head_dim" && config.model.head_dim == 0;
    if (ours.given && !derived && !is_free(ours.path, has_note_head) && ours.print() != theirs.print())
      fail(ErrorKind::usage, "{} is {}, but {} has {}: leave the key out, or set it to that", ours.path, ours.print(),
           name, theirs.print());
  }
  const ModelConfig given = config.model;
  const bool type_given = std::ranges::find(fields.all(), "model.export_type", &Fields::Field::path)->given;
  config.model = model;
  config.model.init = given.init;
  config.model.from = given.from;
  if (type_given) config.model.export_type = given.export_type;
  if (!has_note_head) config.model.note_dim = given.note_dim;
}

}  // namespace

RunConfig read_run_config(const std::string& path, const std::vector<std::string>& overrides) {
  RunConfig config;
  Fields fields;
  config.fields(fields);
  read_config(fields, path, overrides);
  if (!config.model.from.empty()) {
    const std::filesystem::path checkpoint = find_checkpoint(config.model.from);
    take_model(config, fields, read_saved_config(checkpoint / config_file_name).model, checkpoint.string(), true);
  }
  config.model.finish();
  check(config);
  return config;
}

RunConfig read_saved_config(const std::filesystem::path& path) {
  RunConfig config;
  Fields fields;
  config.fields(fields);
  read_config(fields, path.string(), {});
  config.model.finish();
  check(config);
  return config;
}

RunConfig read_config_for_model(const std::string& path, const std::vector<std::string>& overrides,
                                const ModelConfig& model, const std::string& model_name, bool has_note_head) {
  RunConfig config;
  Fields fields;
  config.fields(fields);
  read_config(fields, path, overrides);
  take_model(config, fields, model, model_name, has_note_head);
  config.model.finish();
  check(config);
  return config;
}

std::string print_run_config(RunConfig config) {
  Fields fields;
  config.fields(fields);
  return print_config(fields);
}

}  // namespace notellm
