// A model of the Hugging Face hub as a checkpoint of this program.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "model/parameters.h"
#include "training/hugging_face.h"
#include "training/tensor_files.h"

namespace notellm {

// The weights of a folder with config.json and safetensors (one, or several with an index), of f32, bf16 or f16.
class HuggingFaceWeights {
 public:
  // Opens the files, and compares names and shapes with what the model must have. tokens: ids that its tokenizer has;
  // the embedding may have up to 1,024 rows more, which are left out. add_emb: [EMB] is none of them. Throws
  // Error(checkpoint), naming file and tensor: damaged files (runtime/safetensors.h), one that the index names and that
  // is not there or outside of the folder, a tensor that is missing, unknown, of another shape or type, a separate head
  // that differs from the embedding of a model that ties them, a tokenizer that does not fit.
  HuggingFaceWeights(const std::filesystem::path& folder, const HuggingFaceModel& model, int64_t tokens,
                     bool add_emb = true);

  // Of all tensors; of several types f32.
  ExportType type() const { return type_; }

  // The elements of the whole parameter (not of the note head), in order, in pieces of bounded size. Of the embedding
  // and an untied head: the tokens' rows, then, if added, [EMB] as the mean of them, then zeros. Throws
  // Error(checkpoint): NaN or infinity.
  void read(const Parameter& p, const TensorFiles::Take& take) const;

 private:
  void check_index(const std::filesystem::path& folder) const;
  void check_names(const std::filesystem::path& folder, const ParameterLayout& layout, bool tied) const;
  void check_tied_head() const;
  void check_shape(const Parameter& p) const;
  void read_rows(const Parameter& p, const TensorFiles::Take& take) const;

  TensorFiles files_;
  int64_t rows_, tokens_;
  bool add_emb_;
  ExportType type_;
};

// Reads the model in `source` (config.json, safetensors, tokenizer.json with tokenizer_config.json, or tokenizer.model)
// and writes a checkpoint of step 0 without optimizer state to `destination`, until it is whole to DESTINATION.partial:
// neither may be there. Overrides: seed, model.note_dim and model.init of the note head, which the model does not have;
// a model key that disagrees is an Error(usage). Memory: a few MiB, whatever the model's size. Throws as
// HuggingFaceWeights, read_hugging_face_config and FolderInMaking do; Error(io).
void import_model(const std::filesystem::path& source, const std::filesystem::path& destination,
                  const std::string& config, const std::vector<std::string>& overrides);

}  // namespace notellm
