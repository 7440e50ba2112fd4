#include "training/tensor_files.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "runtime/edit_distance.h"
#include "runtime/files.h"
#include "runtime/half.h"
#include "training/checkpoint_plan.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

constexpr int64_t piece_elements = 1 << 18;

std::set<std::string> files_of_index(const fs::path& path) {
  const auto json = nlohmann::json::parse(read_file(path), nullptr, false);
  std::set<std::string> names;
  if (json.is_object() && json.contains("weight_map") && json["weight_map"].is_object())
    for (const auto& [tensor, file] : json["weight_map"].items())
      names.insert(file.is_string() ? file.get<std::string>() : "");
  if (names.empty() || names.contains(""))
    fail(ErrorKind::checkpoint, "{}: not an index of safetensors files (weight_map)", path.string());
  return names;
}

// Bytes that may stand anywhere, as f32.
template <class T, class Convert>
void widen(const char* from, std::span<float> to, const Convert& convert) {
  for (size_t i = 0; i < to.size(); ++i) {
    T value;
    std::memcpy(&value, from + i * sizeof(T), sizeof(T));
    to[i] = convert(value);
  }
}

void widen(const char* from, DType dtype, std::span<float> to) {
  if (dtype == DType::bf16) return widen<bf16>(from, to, [](bf16 x) { return static_cast<float>(x); });
  if (dtype == DType::f16) return widen<f16>(from, to, [](f16 x) { return to_float(x); });
  std::memcpy(to.data(), from, to.size_bytes());
}

}  // namespace

std::vector<fs::path> model_files(const fs::path& folder) {
  std::vector<fs::path> paths;
  if (fs::exists(folder / index_name))
    for (const std::string& name : files_of_index(file_inside(folder, index_name)))
      paths.push_back(file_inside(folder, name));
  else if (const char* old = "model-00001-of-00001.safetensors";  // of checkpoints that had no index yet
           !fs::exists(folder / "model.safetensors") && fs::exists(folder / old))
    paths.push_back(file_inside(folder, old));
  else
    paths.push_back(file_inside(folder, "model.safetensors"));
  return paths;
}

void TensorFiles::open(const fs::path& path) {
  const SafetensorsFile& file = files_.emplace_back(path, unaligned_);
  for (const NamedTensor& t : file.tensors())
    if (!tensors_.insert({t.name, {path, t.tensor}}).second)
      fail(ErrorKind::checkpoint, "{}: tensor {} is in {} too", path.string(), t.name,
           tensors_.at(t.name).path.string());
}

const TensorFiles::Found& TensorFiles::at(const std::string& name) const {
  if (const auto found = tensors_.find(name); found != tensors_.end()) return found->second;
  if (files_.size() == 1) files_.front().at(name);  // says what is there
  if (tensors_.empty()) fail(ErrorKind::checkpoint, "no safetensors file has tensor {}, nor any other", name);
  const auto nearest =
      std::ranges::min_element(tensors_, {}, [&](const auto& t) { return edit_distance(t.first, name); });
  fail(ErrorKind::checkpoint,
       "{}: none of the {} safetensors files there has tensor {}; the nearest name is {}; of another model?",
       tensors_.begin()->second.path.parent_path().string(), files_.size(), name, nearest->first);
}

Tensor TensorFiles::whole(const std::string& name, const Parameter& p) const {
  const Found& found = at(name);
  const Tensor& t = found.tensor;
  if (t.dtype != DType::f32 || t.rows() != p.all_rows || t.cols() != std::max<int64_t>(1, p.all_cols))
    fail(ErrorKind::checkpoint, "{}: tensor {} is {}, the model wants {}", found.path.string(), name, describe(t),
         p.all_cols ? fmt::format("f32 [{}, {}]", p.all_rows, p.all_cols) : fmt::format("f32 [{}]", p.all_rows));
  return t;
}

void TensorFiles::read(const std::string& name, const Found& found, int64_t count, const Take& take) {
  const Tensor& t = found.tensor;
  const int64_t size = size_of(t.dtype);
  std::vector<float> values(static_cast<size_t>(std::min(count, piece_elements)));
  for (int64_t first = 0; first < count; first += piece_elements) {
    const std::span<float> piece(values.data(), static_cast<size_t>(std::min(piece_elements, count - first)));
    const char* from = static_cast<const char*>(t.data) + first * size;
    widen(from, t.dtype, piece);
    const auto bad = std::ranges::find_if(piece, [](float x) { return !std::isfinite(x); });
    if (bad != piece.end())
      fail(ErrorKind::checkpoint, "{}: tensor {} has {} at row {}, column {}: the weights are damaged",
           found.path.string(), name, *bad, (first + (bad - piece.begin())) / t.cols(),
           (first + (bad - piece.begin())) % t.cols());
    SafetensorsFile::forget(from, piece.size() * size);
    take(first, piece);
  }
}

}  // namespace notellm
