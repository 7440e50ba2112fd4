// The safetensors files of a checkpoint, and where each tensor stands in them: whole tensors, whatever the ranks keep,
// so that every rank knows every place without a message.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "model/parameters.h"

namespace notellm {

inline constexpr int64_t checkpoint_file_bytes = int64_t{4} << 30;
inline constexpr const char* note_head_name = "note_head.safetensors";
inline constexpr const char* index_name = "model.safetensors.index.json";
inline constexpr const char* first_moment_prefix = "first_moment.";
inline constexpr const char* second_moment_prefix = "second_moment.";

class CheckpointPlan {
 public:
  // A file is ended before the tensor that would make its data larger than file_bytes. The same for any part and any
  // number of shards of a model.
  CheckpointPlan(const ParameterLayout& layout, int64_t file_bytes, bool with_moments = true);

  struct File {
    std::string name, header;
    int64_t bytes;
  };
  const std::vector<File>& files() const { return files_; }
  // A tensor's place: its file, and the byte where it begins there.
  struct Place {
    size_t file;
    int64_t offset;
  };
  Place at(const std::string& tensor) const { return places_.at(tensor); }
  // Hugging Face's model.safetensors.index.json: which file holds which tensor of the model.
  std::string index() const;

 private:
  struct Item {
    std::string name;
    const Parameter* parameter;
    int64_t bytes() const;
  };
  void add_files(const std::string& kind, const std::vector<Item>& items, int64_t file_bytes);
  void add_file(const std::string& name, const std::vector<Item>& items);
  std::vector<File> files_;
  std::map<std::string, Place> places_;
};

}  // namespace notellm
