#include "training/checkpoint_plan.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "runtime/safetensors.h"

namespace notellm {
namespace {
constexpr const char* model_kind = "model";
}

int64_t CheckpointPlan::Item::bytes() const {
  return parameter->all_rows * std::max<int64_t>(1, parameter->all_cols) * size_of(DType::f32);
}

CheckpointPlan::CheckpointPlan(const ParameterLayout& layout, int64_t file_bytes, bool with_moments) {
  std::vector<Item> model, note_head, moments;
  for (const Parameter& p : layout.all())
    (p.name.starts_with("note_head.") ? note_head : model).push_back({p.name, &p});
  for (const char* prefix : {first_moment_prefix, second_moment_prefix})
    for (const Parameter& p : layout.all()) moments.push_back({prefix + p.name, &p});
  add_files(model_kind, model, file_bytes);
  add_file(note_head_name, note_head);
  if (with_moments) add_files("optimizer", moments, file_bytes);
}

void CheckpointPlan::add_files(const std::string& kind, const std::vector<Item>& items, int64_t file_bytes) {
  std::vector<std::vector<Item>> files(1);
  int64_t bytes = 0;
  for (const Item& item : items) {
    if (!files.back().empty() && bytes + item.bytes() > file_bytes) {
      files.emplace_back();
      bytes = 0;
    }
    files.back().push_back(item);
    bytes += item.bytes();
  }
  for (size_t i = 0; i < files.size(); ++i)
    add_file(fmt::format("{}-{:05}-of-{:05}.safetensors", kind, i + 1, files.size()), files[i]);
}

void CheckpointPlan::add_file(const std::string& name, const std::vector<Item>& items) {
  std::vector<NamedTensor> tensors;
  for (const Item& item : items) {
    const Parameter& p = *item.parameter;
    tensors.push_back({item.name, p.all_cols ? Tensor(nullptr, DType::f32, {p.all_rows, p.all_cols})
                                             : Tensor(nullptr, DType::f32, {p.all_rows})});
  }
  const SafetensorsPlan plan = plan_safetensors(tensors, {{"format", "pt"}});
  for (size_t i = 0; i < items.size(); ++i) places_[items[i].name] = {files_.size(), plan.offsets[i]};
  files_.push_back({name, plan.header, plan.bytes});
}

std::string CheckpointPlan::index() const {
  nlohmann::ordered_json map = nlohmann::ordered_json::object();
  int64_t bytes = 0;
  for (const File& file : files_)
    if (file.name.starts_with(model_kind)) bytes += file.bytes - static_cast<int64_t>(file.header.size());
  for (const auto& [tensor, place] : places_)
    if (files_[place.file].name.starts_with(model_kind)) map[tensor] = files_[place.file].name;
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", bytes}}}, {"weight_map", map}};
  return index.dump(2) + "\n";
}

}  // namespace notellm
