// The tensors of several safetensors files: of a checkpoint's, or of a Hugging Face model's.
#pragma once

#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "model/parameters.h"
#include "runtime/safetensors.h"

namespace notellm {

// The model's files of a folder: those that model.safetensors.index.json names, or the one file of a model without an
// index. Throws Error(checkpoint): an index that is none, or names files outside of the folder.
std::vector<std::filesystem::path> model_files(const std::filesystem::path& folder);

class TensorFiles {
 public:
  explicit TensorFiles(SafetensorsFile::Unaligned unaligned = SafetensorsFile::Unaligned::copied)
      : unaligned_(unaligned) {}

  // Throws as SafetensorsFile does, and Error(checkpoint) for a name that another file has too.
  void open(const std::filesystem::path& path);

  struct Found {
    std::filesystem::path path;
    Tensor tensor;
  };
  const std::map<std::string, Found>& all() const { return tensors_; }
  // Throws Error(checkpoint) when there is none of that name, with the nearest one.
  const Found& at(const std::string& name) const;
  // The whole tensor of a parameter, under its name or another one: f32 and as large as the whole of `p`. Throws
  // Error(checkpoint).
  Tensor whole(const std::string& name, const Parameter& p) const;

  // Elements [0, count) of a tensor of f32, bf16 or f16 as f32, some after the other, without ever holding more than a
  // part of it: take(the first one's place, values). Throws Error(checkpoint): a value that is NaN or infinite.
  using Take = std::function<void(int64_t first, std::span<const float> values)>;
  static void read(const std::string& name, const Found& found, int64_t count, const Take& take);

 private:
  SafetensorsFile::Unaligned unaligned_;
  std::deque<SafetensorsFile> files_;
  std::map<std::string, Found> tensors_;
};

}  // namespace notellm
