#include "launch/plan_report.h"

#include <cmath>

#include "launch/table.h"
#include "runtime/progress.h"

namespace notellm {
namespace {

constexpr double gib = 1 << 30;

const char* name_of(Sharding sharding) {
  constexpr const char* names[] = {"none", "optimizer", "gradients", "parameters"};
  return names[static_cast<int>(sharding)];
}
const char* name_of(Recompute recompute) { return recompute == Recompute::layer ? "layer" : "none"; }
const char* name_of(CollectiveKind kind) {
  constexpr const char* names[] = {"gather", "reduce-scatter", "all-reduce"};
  return names[static_cast<int>(kind)];
}

std::string bytes_text(int64_t bytes) { return format_bytes(static_cast<double>(bytes)); }
std::string milliseconds(double seconds) { return fmt::format("{:.1f} ms", 1e3 * seconds); }

std::string mesh_text(const ParallelConfig& parallel, int data_ranks) {
  return fmt::format("{} × {} (data × tensor), sharding {}, recompute {}", data_ranks, parallel.tensor,
                     name_of(parallel.sharding), name_of(parallel.recompute));
}

struct MemoryRow {
  const char* name;
  int64_t bytes;
};
// The arena's peak is after them: InfoNCE and the backward pass use the same memory, one after the other.
std::vector<MemoryRow> memory_rows(const MemoryPlan& m) {
  return {{"master weights, f32", m.master_weights},
          {"moments, f32", m.moments},
          {"parameters to compute with", m.parameters},
          {"gradients, f32", m.gradients},
          {"activations", m.step.results + m.step.activations},
          {"workspace", m.step.workspace},
          {"gathered vectors, InfoNCE", m.step.vectors}};
}

struct TrafficRow {
  const char* group;
  const Traffic::Item* item;
};
std::vector<TrafficRow> traffic_rows(const StepTraffic& traffic) {
  std::vector<TrafficRow> rows;
  for (const auto& [name, group] : {std::pair{"world", &traffic.world}, std::pair{"data", &traffic.data},
                                    std::pair{"tensor", &traffic.tensor}, std::pair{"kv head", &traffic.kv_copies}})
    for (const Traffic::Item& item : group->items()) rows.push_back({name, &item});
  return rows;
}

std::string run_table(const PlanReport& r) {
  const ModelConfig& m = r.config.model;
  const auto per_note = [&](int64_t n) { return static_cast<double>(n) / static_cast<double>(r.notes.shared.notes); };
  Table table("ll");
  table.row({"model", fmt::format("{} parameters: {} layers, dim {}, {} heads ({} kv), ffn {}, vocabulary {}",
                                  format_count(parameter_count(m, r.notes.vocabulary)), m.layers, m.dim, m.heads,
                                  m.kv_heads, m.ffn, format_count(r.notes.vocabulary))});
  table.row(
      {"notes", fmt::format("{}: {:.1f} tokens each ({:.1f} without shared beginnings), {:.1f} labels, longest {}",
                            r.notes_from, per_note(r.notes.shared.tokens), per_note(r.notes.unshared.tokens),
                            per_note(r.notes.shared.labels), r.notes.longest.tokens)});
  table.row({"a step", fmt::format("{} pairs, {}", format_count(r.config.train.pairs_per_step),
                                   r.config.precision == Precision::bf16 ? "bf16" : "fp32")});
  if (r.cluster)
    table.row({"ranks",
               fmt::format("{} {}, {} a node", format_count(r.ranks), r.cluster->gpu.name, r.cluster->gpus_per_node)});
  else
    table.row({"ranks", fmt::format("{}, CPU", format_count(r.ranks))});
  return table.text();
}

// The snapshot is in the host's memory, as all is without GPUs.
int64_t most_at_once(const MemoryPlan& m, bool on_gpu) { return m.total() + (on_gpu ? 0 : m.snapshot); }

std::string memory_table(const PlanReport& r) {
  const double room = r.cluster ? r.cluster->gpu.memory_gib * gib : 0;
  Table table(r.cluster ? "lrr" : "lr");
  const auto add = [&](const char* name, double bytes) {
    std::vector<std::string> cells = {name, format_bytes(bytes)};
    if (r.cluster) cells.push_back(fmt::format("{:.1f} %", 100 * bytes / room));
    table.row(cells);
  };
  for (const MemoryRow& row : memory_rows(r.plan->memory)) add(row.name, static_cast<double>(row.bytes));
  if (!r.cluster) add("snapshot for checkpoints", static_cast<double>(r.plan->memory.snapshot));
  add("most at once", static_cast<double>(most_at_once(r.plan->memory, r.cluster.has_value())));
  if (!r.cluster) return table.text(2);
  add("CUDA, cuBLAS, NCCL (assumed)", r.cluster->gpu.reserved_gib * gib);
  add("a GPU has", room);
  const double left = room - static_cast<double>(r.plan->memory.total()) - r.cluster->gpu.reserved_gib * gib;
  return table.text(2) +
         (left >= 0 ? fmt::format("  it fits, {} are left\n", format_bytes(left))
                    : fmt::format("  it does not fit: {} are missing\n", format_bytes(-left))) +
         fmt::format("  and {} of the host's memory a GPU: the snapshot for checkpoints\n",
                     bytes_text(r.plan->memory.snapshot));
}

std::string traffic_table(const Plan& plan) {
  Table table("lllrr");
  table.row({"collective", "kind", "group", "calls", "bytes sent"});
  int64_t sum = 0;
  for (const auto& [group, item] : traffic_rows(plan.traffic)) {
    table.row({item->name, name_of(item->kind), group, format_count(item->calls), bytes_text(item->bytes)});
    sum += item->bytes;
  }
  table.row({"all", "", "", "", bytes_text(sum)});
  return sum == 0 ? "  none\n" : table.text(2);
}

std::string prediction_table(const Prediction& p) {
  Table table("lrr");
  for (const Prediction::Part& part : p.parts)
    if (part.seconds > 0)
      table.row({part.name, milliseconds(part.seconds), fmt::format("{:.1f} %", 100 * part.seconds / p.seconds())});
  table.row({"step", milliseconds(p.seconds()), ""});
  return table.text(2) + fmt::format("  predicted: {} notes/s, MFU {:.1f} %\n",
                                     format_count(std::llround(p.notes_per_second)), 100 * p.mfu);
}

std::string search_table(const PlanReport& r) {
  const PlanSearch& s = *r.search;
  std::string text = fmt::format("\nbest of {} ways to share the run out, by predicted time; {} do not fit\n",
                                 format_count(s.tried), format_count(s.too_large));
  if (s.choices.empty())
    return text + (s.tried == 0
                       ? fmt::format("  none: no tensor group divides model and ranks with train.pairs_per_step {} or "
                                     "fewer groups; take other ranks or more pairs\n",
                                     r.config.train.pairs_per_step)
                       : fmt::format("  none: the smallest takes {} a GPU; take more GPUs, shorter prompts or fewer "
                                     "pairs\n",
                                     bytes_text(s.smallest)));
  Table table("rrllrrrrr");
  table.row({"data", "tensor", "sharding", "recompute", "pairs at once", "memory", "step", "MFU", "notes/s"});
  for (size_t i = 0; i < s.choices.size() && i < static_cast<size_t>(r.shown); ++i) {
    const Choice& c = s.choices[i];
    table.row({std::to_string(c.data_ranks), std::to_string(c.parallel.tensor), name_of(c.parallel.sharding),
               name_of(c.parallel.recompute), c.micro_batch_pairs == 0 ? "all" : std::to_string(c.micro_batch_pairs),
               bytes_text(c.memory.total()), milliseconds(c.prediction.seconds()),
               fmt::format("{:.1f} %", 100 * c.prediction.mfu),
               format_count(std::llround(c.prediction.notes_per_second))});
  }
  return text + table.text(2);
}

nlohmann::ordered_json json_of(const MemoryPlan& memory, bool on_gpu) {
  nlohmann::ordered_json json;
  json["master_weights"] = memory.master_weights;
  json["moments"] = memory.moments;
  json["parameters"] = memory.parameters;
  json["gradients"] = memory.gradients;
  json["activations"] = memory.step.results + memory.step.activations;
  json["workspace"] = memory.step.workspace;
  json["gathered_vectors"] = memory.step.vectors;
  json["snapshot"] = memory.snapshot;
  json["most_at_once"] = most_at_once(memory, on_gpu);
  return json;
}

nlohmann::ordered_json json_of(const Prediction& prediction) {
  nlohmann::ordered_json json = {{"seconds_per_step", prediction.seconds()},
                                 {"notes_per_second", prediction.notes_per_second},
                                 {"mfu", prediction.mfu}};
  for (const Prediction::Part& part : prediction.parts) json["parts"][part.name] = part.seconds;
  return json;
}

nlohmann::ordered_json json_of(const Choice& c) {
  return {{"data", c.data_ranks},
          {"tensor", c.parallel.tensor},
          {"sharding", name_of(c.parallel.sharding)},
          {"recompute", name_of(c.parallel.recompute)},
          {"micro_batch_pairs", c.micro_batch_pairs},
          {"memory_bytes", json_of(c.memory, true)},
          {"predicted", json_of(c.prediction)}};
}

}  // namespace

std::string PlanReport::text() const {
  std::string text = run_table(*this);
  const int data_ranks = ranks / config.parallel.tensor;
  for (const std::string& problem : problems) text += fmt::format("\ncannot run so: {}\n", problem);
  if (plan) {
    text += fmt::format("\nthe configuration's own way: {}{}\n", mesh_text(config.parallel, data_ranks),
                        plan->sizes.count() == 1 ? "" : fmt::format(", {} micro-batches", plan->sizes.count()));
    if (config.train.pairs_per_step % data_ranks != 0)
      text += fmt::format("  {} pairs do not divide by {}: some tensor groups wait for those with one more\n",
                          config.train.pairs_per_step, data_ranks);
    text += "\nmemory of a rank, for micro-batches of the longest notes\n" + memory_table(*this);
    text += "\nwhat a rank sends in a step\n" + traffic_table(*plan);
    if (prediction) text += "\npredicted time of a step, not measured\n" + prediction_table(*prediction);
  }
  if (search) text += search_table(*this);
  return text;
}

nlohmann::ordered_json PlanReport::json() const {
  nlohmann::ordered_json json = {{"ranks", ranks},
                                 {"notes_from", notes_from},
                                 {"parameters", parameter_count(config.model, notes.vocabulary)},
                                 {"pairs_per_step", config.train.pairs_per_step},
                                 {"problems", problems}};
  if (cluster) {
    json["cluster"] = cluster_file;
    json["gpu_memory_bytes"] = static_cast<int64_t>(cluster->gpu.memory_gib * gib);
    json["reserved_bytes"] = static_cast<int64_t>(cluster->gpu.reserved_gib * gib);
  }
  if (plan) {
    json["plan"]["data"] = plan->place.data_ranks;
    json["plan"]["tensor"] = plan->place.tensor_ranks;
    json["plan"]["sharding"] = name_of(config.parallel.sharding);
    json["plan"]["recompute"] = name_of(config.parallel.recompute);
    json["plan"]["micro_batches"] = plan->sizes.count();
    json["plan"]["flops_per_step"] = plan->flops.total();
    json["plan"]["memory_bytes"] = json_of(plan->memory, cluster.has_value());
    json["plan"]["bytes_sent"] = nlohmann::ordered_json::array();
    for (const auto& [group, item] : traffic_rows(plan->traffic))
      json["plan"]["bytes_sent"].push_back({{"collective", item->name},
                                            {"kind", name_of(item->kind)},
                                            {"group", group},
                                            {"calls", item->calls},
                                            {"bytes", item->bytes}});
  }
  if (prediction) json["plan"]["predicted"] = json_of(*prediction);
  if (search) {
    json["search"] = {{"tried", search->tried}, {"do_not_fit", search->too_large}};
    json["search"]["choices"] = nlohmann::ordered_json::array();
    for (size_t i = 0; i < search->choices.size() && i < static_cast<size_t>(shown); ++i)
      json["search"]["choices"].push_back(json_of(search->choices[i]));
  }
  return json;
}

}  // namespace notellm
