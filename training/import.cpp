#include "training/import.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "data_pipeline/shards.h"
#include "data_pipeline/tokenizer.h"
#include "runtime/files.h"
#include "runtime/log.h"
#include "training/checkpoint_folder.h"
#include "training/checkpoint_plan.h"
#include "training/config.h"
#include "training/folder_in_making.h"
#include "training/manifest.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

// Models' embeddings are padded to multiples of up to 512, and a few ids are kept for later: 905 rows is the most that
// was seen.
constexpr int64_t most_rows_without_token = 1024;
constexpr const char* head_name = "lm_head.weight";
constexpr const char* embedding_name = "model.embed_tokens.weight";

ExportType export_type(DType dtype) {
  return dtype == DType::bf16 ? ExportType::bf16 : dtype == DType::f16 ? ExportType::f16 : ExportType::f32;
}

// Old checkpoints keep the rotary frequencies, which config.json decides.
bool is_computed(const std::string& name) { return name.ends_with(".rotary_emb.inv_freq"); }

void check_tokens(const fs::path& folder, int64_t rows, int64_t tokens) {
  if (tokens <= rows && rows - tokens <= most_rows_without_token) return;
  fail(ErrorKind::checkpoint,
       "{}: the tokenizer has {} tokens, the embedding {} rows (vocab_size): they are not of the same model",
       folder.string(), tokens, rows);
}

}  // namespace

HuggingFaceWeights::HuggingFaceWeights(const fs::path& folder, const HuggingFaceModel& model, int64_t tokens,
                                       bool add_emb)
    : files_(SafetensorsFile::Unaligned::left), rows_(model.vocabulary), tokens_(tokens), add_emb_(add_emb) {
  check_tokens(folder, rows_, tokens);
  const bool whole = fs::exists(folder / "model.safetensors");
  if (whole == fs::exists(folder / index_name))
    fail(ErrorKind::checkpoint, "{} has {}", folder.string(),
         whole ? fmt::format("both model.safetensors and {}: take away the one that is not the model", index_name)
               : fmt::format("neither model.safetensors nor {}: other formats are not read", index_name));
  for (const fs::path& path : model_files(folder)) files_.open(path);
  check_index(folder);
  const ParameterLayout layout(model.config, padded_vocabulary(tokens + add_emb));
  check_names(folder, layout, model.config.tied_head);
  if (model.config.tied_head) check_tied_head();
  type_ = export_type(files_.at(embedding_name).tensor.dtype);
  for (const auto& [name, found] : files_.all())
    if (!is_computed(name) && export_type(found.tensor.dtype) != type_) type_ = ExportType::f32;
}

void HuggingFaceWeights::check_index(const fs::path& folder) const {
  if (!fs::exists(folder / index_name)) return;
  const auto index = nlohmann::json::parse(read_file(folder / index_name));
  for (const auto& [tensor, file] : index.at("weight_map").items())
    if (const TensorFiles::Found& found = files_.at(tensor); found.path.filename() != file.get<std::string>())
      fail(ErrorKind::checkpoint, "{}: tensor {} is in {}, not in {}", (folder / index_name).string(), tensor,
           found.path.filename().string(), file.get<std::string>());
}

void HuggingFaceWeights::check_names(const fs::path& folder, const ParameterLayout& layout, bool tied) const {
  size_t known = 0;
  for (const Parameter& p : layout.all()) {
    if (p.name.starts_with("note_head.")) continue;
    check_shape(p);
    ++known;
  }
  for (const auto& [name, found] : files_.all()) {
    const bool is_head = tied && name == head_name;  // a copy of the embedding, which read() compares
    const auto same = [&](const Parameter& p) { return p.name == name; };
    if (std::ranges::none_of(layout.all(), same) && !is_head && !is_computed(name))
      fail(ErrorKind::checkpoint, "{}: tensor {} is none of the {} that a model of {} has", found.path.string(), name,
           known, (folder / hugging_face_config_name).string());
  }
}

// Some files keep the head of a model that ties it.
void HuggingFaceWeights::check_tied_head() const {
  const auto head = files_.all().find(head_name);
  if (head == files_.all().end()) return;
  const Tensor &a = head->second.tensor, &b = files_.at(embedding_name).tensor;
  bool same = a.dtype == b.dtype && a.shape == b.shape;
  constexpr int64_t piece = 1 << 20;
  for (int64_t i = 0; same && i < a.bytes(); i += piece) {
    const auto bytes = static_cast<size_t>(std::min(piece, a.bytes() - i));
    const char *x = static_cast<const char*>(a.data) + i, *y = static_cast<const char*>(b.data) + i;
    same = std::memcmp(x, y, bytes) == 0;
    for (const char* begin : {x, y}) SafetensorsFile::forget(begin, bytes);
  }
  if (!same)
    fail(ErrorKind::checkpoint, "{}: {} differs from {}, but {} has tie_word_embeddings: true",
         head->second.path.string(), head_name, embedding_name, hugging_face_config_name);
}

void HuggingFaceWeights::check_shape(const Parameter& p) const {
  const TensorFiles::Found& found = files_.at(p.name);
  const Tensor& t = found.tensor;
  const int64_t rows = p.kind == ParameterKind::embedding ? rows_ : p.all_rows;
  if (t.dims != (p.all_cols ? 2 : 1) || t.rows() != rows || (p.all_cols && t.cols() != p.all_cols))
    fail(ErrorKind::checkpoint, "{}: tensor {} is {}, but must be [{}] by {}", found.path.string(), p.name, describe(t),
         p.all_cols ? fmt::format("{}, {}", rows, p.all_cols) : fmt::format("{}", rows), hugging_face_config_name);
  if (t.dtype != DType::f32 && t.dtype != DType::bf16 && t.dtype != DType::f16)
    fail(ErrorKind::checkpoint, "{}: tensor {} is {}; only f32, bf16 and f16 are supported", found.path.string(),
         p.name, describe(t));
}

void HuggingFaceWeights::read(const Parameter& p, const TensorFiles::Take& take) const {
  if (p.kind == ParameterKind::embedding) return read_rows(p, take);
  const TensorFiles::Found& found = files_.at(p.name);
  TensorFiles::read(p.name, found, found.tensor.size(), take);
}

void HuggingFaceWeights::read_rows(const Parameter& p, const TensorFiles::Take& take) const {
  const int64_t cols = p.all_cols, end = tokens_ * cols;
  std::vector<double> sums(static_cast<size_t>(cols));
  TensorFiles::read(p.name, files_.at(p.name), end, [&](int64_t first, std::span<const float> values) {
    for (size_t i = 0; i < values.size(); ++i) sums[(first + static_cast<int64_t>(i)) % cols] += values[i];
    take(first, values);
  });
  std::vector<float> row(static_cast<size_t>(cols));
  for (int64_t c = 0; c < cols; ++c) row[c] = static_cast<float>(sums[c] / static_cast<double>(tokens_));
  if (add_emb_) take(end, row);
  std::ranges::fill(row, 0.0f);
  for (int64_t r = tokens_ + add_emb_; r < p.all_rows; ++r) take(r * cols, row);
}

namespace {

// The files of a checkpoint whose tensors come one after the other.
void write_tensors(const HuggingFaceWeights& weights, const ParameterLayout& layout, const RunConfig& config,
                   const CheckpointPlan& plan, const fs::path& folder) {
  std::vector<FileInPlace> files;
  for (const CheckpointPlan::File& file : plan.files()) {
    create_file(folder / file.name, file.header, file.bytes);
    files.emplace_back(folder / file.name);
  }
  const auto writer = [&](const Parameter& p) {
    const CheckpointPlan::Place place = plan.at(p.name);
    return [&files, place](int64_t first, std::span<const float> values) {
      files[place.file].write(place.offset + first * size_of(DType::f32),
                              {reinterpret_cast<const char*>(values.data()), values.size_bytes()});
    };
  };
  for (const Parameter& p : layout.all())
    if (!p.name.starts_with("note_head.")) weights.read(p, writer(p));
  initialize_note_head(layout, config.model.init, static_cast<uint64_t>(config.seed),
                       [&](const Parameter& p, Tensor values) { writer(p)(0, values.span<float>()); });
  for (FileInPlace& file : files) file.sync();
}

// tokenizer.json where there is one, else the SentencePiece model.
Tokenizer read_tokenizer(const fs::path& source) {
  for (const char* name : tokenizer_file_names)
    if (fs::is_symlink(source / name)) file_inside(source, name);
  return Tokenizer::load_stored(source);
}

// Whether the embedding has the row of [EMB] already: its tokenizer.json has the token; or, as in an export with a
// SentencePiece model, tokenizer_config.json names it, behind the model's tokens.
bool has_emb_row(const fs::path& source, const Tokenizer& tokenizer, int64_t rows) {
  const fs::path config = source / tokenizer_file_names[2];
  if (tokenizer.has_own_emb() || rows <= tokenizer.emb() || !fs::exists(config)) return tokenizer.has_own_emb();
  const auto json = nlohmann::json::parse(read_file(config), nullptr, false);
  const auto content = nlohmann::json::json_pointer(fmt::format("/added_tokens_decoder/{}/content", tokenizer.emb()));
  return json.is_object() && json.contains(content) && json[content] == emb_piece;
}

}  // namespace

void import_model(const fs::path& source, const fs::path& destination, const std::string& config_path,
                  const std::vector<std::string>& overrides) {
  if (!fs::is_directory(source)) fail(ErrorKind::io, "{} is not a folder", source.string());
  HuggingFaceModel model = read_hugging_face_config(source);
  const Tokenizer tokenizer = read_tokenizer(source);
  const bool has_emb = has_emb_row(source, tokenizer, model.vocabulary);
  const int64_t vocabulary = tokenizer.vocabulary(), tokens = vocabulary - !has_emb;
  const HuggingFaceWeights weights(source, model, tokens, !has_emb);
  model.config.export_type = weights.type();
  const RunConfig config = read_config_for_model(config_path, overrides, model.config, source.string(), false);
  const ParameterLayout layout(config.model, padded_vocabulary(vocabulary));
  const CheckpointPlan plan(layout, checkpoint_file_bytes, false);

  FolderInMaking folder(destination);
  write_tensors(weights, layout, config, plan, folder.path());
  Manifest manifest;
  manifest.vocabulary = layout.vocabulary();
  manifest.tokens_in_use = vocabulary;
  manifest.tokenizer_digest = tokenizer.digest();
  const auto small_file = [&](const std::string& name, const std::string& content) {
    write_file(folder.path() / name, content);
  };
  small_file(index_name, plan.index());
  small_file(hugging_face_config_name,
             hugging_face_config(config.model, layout.vocabulary(), tokenizer.bos(), tokenizer.eos(), ExportType::f32));
  small_file(config_file_name, print_run_config(config));
  for (const auto& [name, bytes] : tokenizer.files()) small_file(name, bytes);
  for (const auto& entry : fs::directory_iterator(folder.path()))
    manifest.files.push_back(
        {entry.path().filename().string(), static_cast<int64_t>(entry.file_size()), checksum_file(entry.path())});
  write_manifest(folder.path(), manifest);
  folder.publish();
  spdlog::info("imported {}: {} tokens{}, note vectors of {} from a new head; {}", source.string(), tokens,
               has_emb ? "" : " and [EMB]", config.model.note_dim, destination.string());
  if (const int64_t without = model.vocabulary - tokens; without > 0)
    spdlog::info("{} rows of the embedding belong to no token of the tokenizer, and were left out", without);
}

}  // namespace notellm
