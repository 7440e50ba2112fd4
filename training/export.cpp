#include "training/export.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "data_pipeline/shards.h"
#include "data_pipeline/tokenizer.h"
#include "runtime/files.h"
#include "runtime/half.h"
#include "runtime/log.h"
#include "training/checkpoint.h"
#include "training/checkpoint_plan.h"
#include "training/export_bundle.h"
#include "training/folder_in_making.h"
#include "training/hugging_face.h"
#include "training/tensor_files.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

DType dtype_of(ExportType type) {
  return type == ExportType::f32 ? DType::f32 : type == ExportType::bf16 ? DType::bf16 : DType::f16;
}

// A tensor of the export: the first rows of a parameter's.
struct Item {
  const Parameter* parameter;
  NamedTensor as;  // without data
};

template <class T, class Convert>
std::string narrowed(std::span<const float> values, const Convert& convert) {
  std::string bytes(values.size() * sizeof(T), '\0');
  for (size_t i = 0; i < values.size(); ++i) {
    const T value = convert(values[i]);
    std::copy_n(reinterpret_cast<const char*>(&value), sizeof(T), bytes.data() + i * sizeof(T));
  }
  return bytes;
}

std::string to_bytes(std::span<const float> values, DType dtype, const std::string& name) {
  if (dtype == DType::f32) return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
  if (dtype == DType::bf16) return narrowed<bf16>(values, [](float x) { return bf16(x); });
  return narrowed<f16>(values, [&](float x) {
    const f16 narrow = to_f16(x);
    if (!std::isfinite(to_float(narrow)))
      fail(ErrorKind::checkpoint, "{} has {}, which is beyond f16: export as bf16 or f32", name, x);
    return narrow;
  });
}

class Exporter {
 public:
  Exporter(const fs::path& checkpoint, const fs::path& destination, const ExportOptions& options)
      : info_(verify_checkpoint(find_checkpoint(checkpoint))),
        options_(options),
        type_(options.type.value_or(info_.config.model.export_type)),
        tokenizer_(Tokenizer::load_stored(info_.path)),
        layout_(info_.config.model, info_.manifest.vocabulary),
        files_(SafetensorsFile::Unaligned::left),
        folder_(destination) {
    if (tokenizer_.vocabulary() != info_.manifest.tokens_in_use)
      fail(ErrorKind::checkpoint, "{} has {} tokens in use, its tokenizer {}", info_.path.string(),
           info_.manifest.tokens_in_use, tokenizer_.vocabulary());
    for (const fs::path& path : model_files(info_.path)) files_.open(path);
    files_.open(file_inside(info_.path, note_head_name));
  }

  void run() {
    const std::string measured = measured_recall(info_.path, options_.report);  // before the work: may be no report
    write_model();
    const RunConfig& config = info_.config;
    write(hugging_face_config_name,
          hugging_face_config(config.model, info_.manifest.tokens_in_use, tokenizer_.bos(), tokenizer_.eos(), type_));
    write("generation_config.json", generation_config(tokenizer_));
    for (const auto& [file, content] : exported_tokenizer(tokenizer_, config.model.context)) write(file, content);
    if (config.model.qkv_bias && tokenizer_.files().contains(tokenizer_file_names[0]))
      spdlog::warn(
          "transformers 5 has no SentencePiece tokenizer for Qwen2: load it by LlamaTokenizer, not AutoTokenizer");
    write("README.md", model_card(info_, measured));
    for (const auto& [name, content] : sentence_transformers_files(config.model)) write(name, content);
    const Parameter& projection = layout_.at("note_head.weight");
    write_file_of({{&projection, {"linear.weight", shape(projection, DType::f32)}}}, "2_Dense/model.safetensors");
    folder_.publish();
  }

 private:
  void write(const std::string& name, const std::string& content) {
    fs::create_directories((folder_.path() / name).parent_path());
    write_file(folder_.path() / name, content);
  }

  Tensor shape(const Parameter& p, DType dtype) const {
    const int64_t rows = p.kind == ParameterKind::embedding ? info_.manifest.tokens_in_use : p.all_rows;
    return p.all_cols ? Tensor(nullptr, dtype, {rows, p.all_cols}) : Tensor(nullptr, dtype, {rows});
  }

  void write_model() {
    std::vector<std::vector<Item>> files(1);
    int64_t bytes = 0, all_bytes = 0;
    for (const Parameter& p : layout_.all()) {
      if (p.name.starts_with("note_head.")) continue;
      const Item item{&p, {p.name, shape(p, dtype_of(type_))}};
      if (!files.back().empty() && bytes + item.as.tensor.bytes() > options_.file_bytes) {
        files.emplace_back();
        bytes = 0;
      }
      files.back().push_back(item);
      bytes += item.as.tensor.bytes();
      all_bytes += item.as.tensor.bytes();
    }
    if (files.size() == 1) return write_file_of(files[0], "model.safetensors");
    nlohmann::ordered_json map = nlohmann::ordered_json::object();
    for (size_t i = 0; i < files.size(); ++i) {
      const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, files.size());
      write_file_of(files[i], name);
      for (const Item& item : files[i]) map[item.as.name] = name;
    }
    const nlohmann::ordered_json index = {{"metadata", {{"total_size", all_bytes}}}, {"weight_map", map}};
    write(index_name, index.dump(2) + "\n");
  }

  void write_file_of(const std::vector<Item>& items, const std::string& name) {
    std::vector<NamedTensor> tensors;
    for (const Item& item : items) tensors.push_back(item.as);
    const SafetensorsPlan plan = plan_safetensors(tensors, {{"format", "pt"}});
    const fs::path path = folder_.path() / name;
    create_file(path, plan.header, plan.bytes);
    FileInPlace file(path);
    for (size_t i = 0; i < items.size(); ++i) {
      const Parameter& p = *items[i].parameter;
      const DType dtype = items[i].as.tensor.dtype;
      files_.whole(p.name, p);  // as large as the model's
      TensorFiles::read(p.name, files_.at(p.name), items[i].as.tensor.size(),
                        [&](int64_t first, std::span<const float> values) {
                          file.write(plan.offsets[i] + first * size_of(dtype), to_bytes(values, dtype, p.name));
                        });
    }
    file.sync();
  }

  CheckpointInfo info_;
  const ExportOptions& options_;
  ExportType type_;
  Tokenizer tokenizer_;
  ParameterLayout layout_;
  TensorFiles files_;
  FolderInMaking folder_;
};

}  // namespace

void export_model(const fs::path& checkpoint, const fs::path& destination, const ExportOptions& options) {
  Exporter(checkpoint, destination, options).run();
  spdlog::info("exported to {}", destination.string());
}

}  // namespace notellm
