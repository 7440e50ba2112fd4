#include <cmath>
#include <cstdio>
#include <exception>
#include <fstream>

#include "data_pipeline/hdf5_file.h"
#include "data_pipeline/shards.h"
#include "data_pipeline/tokenizer.h"
#include "launch/commands.h"
#include "launch/inspect.h"
#include "launch/table.h"
#include "runtime/files.h"
#include "runtime/progress.h"
#include "runtime/safetensors.h"
#include "training/checkpoint.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

// Root mean square of a tensor's numbers: NaN or Inf where one of them is.
std::string rms(const Tensor& t) {
  if (t.dtype != DType::f32 && t.dtype != DType::bf16) return "";
  double sum = 0;
  for (int64_t i = 0; i < t.size(); ++i) {
    const double value = t.dtype == DType::f32 ? t.as<float>()[i] : static_cast<float>(t.as<bf16>()[i]);
    sum += value * value;
  }
  return fmt::format("{:.3g}", std::sqrt(sum / static_cast<double>(std::max<int64_t>(1, t.size()))));
}

int64_t print_tensors(const SafetensorsFile& file) {
  Table table("lrrrr");
  table.row({"tensor", "type", "shape", "size", "rms"});
  int64_t elements = 0;
  for (const auto& [name, t] : file.tensors()) {
    std::string shape;
    for (int i = 0; i < t.dims; ++i) shape += (i ? " × " : "") + std::to_string(t.shape[i]);
    table.row({name, name_of(t.dtype), shape, format_bytes(static_cast<double>(t.bytes())), rms(t)});
    elements += t.size();
  }
  std::printf("%s", table.text(2).c_str());
  return elements;
}

std::string first_bytes(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) fail(ErrorKind::io, "{}: cannot be read", file.string());
  std::string bytes(16, '\0');
  stream.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  bytes.resize(stream.gcount());
  return bytes;
}

void inspect_folder(const fs::path& folder, int64_t notes) {
  if (fs::exists(folder / shard_set_file_name)) return inspect_shards(folder, notes);
  if (notes > 0) fail(ErrorKind::usage, "--notes: {} is no folder of shards", folder.string());
  if (fs::exists(folder / manifest_name)) return inspect_checkpoint(folder);
  if (fs::exists(folder / "checkpoints") || fs::exists(folder / "metrics.jsonl")) return inspect_run(folder);
  fail(ErrorKind::data,
       "{}: neither shards ({}), nor a checkpoint (manifest.json), nor a run (checkpoints, metrics.jsonl); a folder "
       "that is not complete has none of them",
       folder.string(), shard_set_file_name);
}

}  // namespace

void inspect_safetensors(const fs::path& path) {
  const SafetensorsFile file(path);
  std::printf("what  safetensors, %s tensors\n", format_count(std::ssize(file.tensors())).c_str());
  for (const auto& [key, value] : file.metadata()) std::printf("%s  %s\n", key.c_str(), one_line(value, 100).c_str());
  const int64_t elements = print_tensors(file);
  std::printf("%s numbers in all\n", format_count(elements).c_str());
}

void inspect_tokenizer(const fs::path& path) {
  const Tokenizer tokenizer = Tokenizer::load(path);
  Table table("ll");
  table.row({"what", tokenizer.kind()});
  table.row({"digest", tokenizer.digest()});
  table.row({"tokens", fmt::format("{} ([EMB] included)", format_count(tokenizer.vocabulary()))});
  if (!tokenizer.bos()) table.row({"BOS", "none: nothing stands before a text"});
  for (const auto& [name, id] :
       {std::pair{"BOS", tokenizer.bos().value_or(-1)}, {"EOS", tokenizer.eos()}, {"[EMB]", tokenizer.emb()}})
    if (id >= 0) table.row({name, fmt::format("{}  {}", id, tokenizer.piece(id))});
  constexpr int shown = 24;
  std::string pieces;
  for (int i = 0; i < shown; ++i) {
    const auto id = static_cast<int32_t>(int64_t{tokenizer.vocabulary() - 1} * i / (shown - 1));
    pieces += (i ? " " : "") + tokenizer.piece(id);
  }
  table.row({"some tokens", pieces});
  std::printf("%s", table.text().c_str());
}

void inspect_checkpoint(const fs::path& folder) {
  const CheckpointInfo info = verify_checkpoint(folder);
  const ModelConfig& m = info.config.model;
  Table table("ll");
  const bool trained = has_moments(info.manifest);
  table.row({"what", trained ? "checkpoint, written by 'notellm train'"
                             : "weights without optimizer state, written by 'notellm import'"});
  if (trained)
    table.row(
        {"step", fmt::format("{} of {} ({} skipped)", format_count(info.manifest.position.step),
                             format_count(info.config.train.steps), format_count(info.manifest.position.skipped))});
  table.row({"model", fmt::format("{} layers, dim {}, {} heads ({} kv), ffn {}, context {}, vectors of {}", m.layers,
                                  m.dim, m.heads, m.kv_heads, m.ffn, m.context, m.note_dim)});
  table.row({"vocabulary", fmt::format("{} rows, {} in use", format_count(info.manifest.vocabulary),
                                       format_count(info.manifest.tokens_in_use))});
  const ParameterLayout layout(m, info.manifest.vocabulary);
  int64_t parameters = 0;
  for (const Parameter& parameter : layout.all()) parameters += parameter.size();
  table.row({"parameters", format_count(parameters)});
  table.row({"tokenizer", info.manifest.tokenizer_digest});
  table.row({"shards", info.config.data.shards});
  std::printf("%s", table.text().c_str());
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  for (const fs::path& file : files) {
    const std::string name = file.filename().string();
    const bool known = name == manifest_name ||
                       std::ranges::find(info.manifest.files, name, &FileRecord::name) != info.manifest.files.end();
    std::printf("%s, %s%s\n", name.c_str(), format_bytes(static_cast<double>(fs::file_size(file))).c_str(),
                known ? "" : ", which the manifest does not know and nothing reads");
    if (known && file.extension() == ".safetensors") print_tensors(SafetensorsFile(file));
  }
  std::printf("all files of the manifest agree with their checksums\n");
}

void inspect_run(const fs::path& folder) {
  std::printf("what  run of 'notellm train'\n");
  std::vector<fs::path> checkpoints;
  if (fs::exists(folder / "checkpoints"))
    for (const auto& entry : fs::directory_iterator(folder / "checkpoints"))
      if (entry.is_directory()) checkpoints.push_back(entry.path());
  std::sort(checkpoints.begin(), checkpoints.end());
  Table table("lrl");
  table.row({"checkpoint", "step", "state"});
  std::exception_ptr damage;
  for (const fs::path& checkpoint : checkpoints) {
    try {
      table.row({checkpoint.filename().string(), format_count(verify_checkpoint(checkpoint).manifest.position.step),
                 "whole"});
    } catch (const Error& error) {
      // What a save that was cut off left behind does no harm.
      const bool partial = checkpoint.extension() == ".partial" || checkpoint.extension() == ".removed";
      table.row({checkpoint.filename().string(), "",
                 partial ? "left by a save that was cut off; the next one removes it" : "damaged"});
      if (!partial) damage = std::current_exception();
    }
  }
  std::printf("%s", table.text().c_str());
  if (fs::exists(folder / "metrics.jsonl")) {
    std::ifstream metrics(folder / "metrics.jsonl");
    std::string line, last;
    int64_t lines = 0;
    for (; std::getline(metrics, line); ++lines) last = line;
    std::printf("metrics.jsonl: %s lines, the last one %s\n", format_count(lines).c_str(), last.c_str());
  }
  if (damage) std::rethrow_exception(damage);
}

void inspect(const fs::path& path, int64_t notes) {
  if (!fs::exists(path)) fail(ErrorKind::io, "{}: no such file or folder", path.string());
  if (fs::is_directory(path)) return inspect_folder(path, notes);
  if (const fs::path name = path.filename(); name == shard_set_file_name || name == manifest_name)
    return inspect_folder(path.has_parent_path() ? path.parent_path() : ".", notes);  // which the file describes
  const std::string begin = first_bytes(path), extension = path.extension().string();
  if (extension == ".h5" || begin.starts_with(hdf5_begin)) return inspect_hdf5(path, notes);
  if (notes > 0) fail(ErrorKind::usage, "--notes: {} is no file of shards", path.string());
  if (extension == ".model" || extension == ".json") return inspect_tokenizer(path);
  if (extension == ".safetensors" || (begin.size() > 8 && begin[8] == '{')) return inspect_safetensors(path);
  fail(ErrorKind::data,
       "{}: not a file that can be inspected: .h5 (shards, vectors), .safetensors, .model (SentencePiece), "
       "tokenizer.json",
       path.string());
}

void add_inspect(CLI::App& app, Action& chosen) {
  CLI::App* command = app.add_subcommand("inspect", "what is in a file or folder, and whether it is whole");
  command->footer(
      R"(Knows folders of shards, runs and checkpoints, and files: .h5 (shards, vectors), .safetensors, .model
(SentencePiece), tokenizer.json; shards.json and manifest.json stand for their folder. Checksums and contents are checked; the exit code is 3 (data) or 5 (checkpoint) where
something is damaged.
Example: notellm inspect data/debian/shards --notes 3)");
  struct Options {
    std::string path;
    int64_t notes = 0;
  };
  auto options = std::make_shared<Options>();
  command->add_option("path", options->path, "file or folder")->required()->type_name("PATH");
  command->add_option("--notes", options->notes, "show so many notes of shards in words, as the model reads them")
      ->type_name("N")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 20).description(""));
  command->callback([options, &chosen] {
    chosen = [options](Communicator& ranks) {
      if (ranks.rank() == 0) inspect(options->path, options->notes);
      return 0;
    };
  });
}

}  // namespace notellm
