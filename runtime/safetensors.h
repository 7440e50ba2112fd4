// The safetensors file format (github.com/huggingface/safetensors): 8 bytes length of the header (little endian), a
// JSON header {"name": {"dtype", "shape", "data_offsets"}, "__metadata__": {text: text}}, then the data.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/memory.h"
#include "runtime/tensor.h"

namespace notellm {

struct NamedTensor {
  std::string name;
  Tensor tensor;
};

// A file before its data is there.
struct SafetensorsPlan {
  std::string header;            // length and JSON: how the file begins
  std::vector<int64_t> offsets;  // where each tensor begins in the file, in the order given
  int64_t bytes;                 // of the whole file
};

// Of names, dtypes (f32, bf16, f16, i32, i64, f64) and shapes alone: the tensors need no data. The data begins at a
// multiple of 8 bytes and lies in the order given, except that wider types come first: the format allows no gaps, and
// so each tensor is aligned to its type. Throws Error(internal) for a name given twice.
SafetensorsPlan plan_safetensors(std::span<const NamedTensor> tensors,
                                 const std::map<std::string, std::string>& metadata = {});

// A file mapped into memory, read only; tensors are views that live as long as this object, in the order of their place
// in the file. A scalar is [1]. Throws Error(io) when the file cannot be read;
// Error(checkpoint) naming file and tensor: truncated file, a header length that lies, overlapping or out-of-range
// offsets, bytes that belong to no tensor, a shape that disagrees with its bytes, more than 3 dimensions, a name that
// is there twice, unknown dtype, malformed JSON.
class SafetensorsFile {
 public:
  // Other writers may place a tensor where its type cannot be read: it is copied into memory, or left there, to be read
  // byte by byte.
  enum class Unaligned { copied, left };
  explicit SafetensorsFile(const std::filesystem::path& path, Unaligned unaligned = Unaligned::copied);

  const std::vector<NamedTensor>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // Throws Error(checkpoint) when there is none of that name, naming the file and the nearest name.
  Tensor at(const std::string& name) const;
  // The memory that reading these bytes took may go; read again they come from the file again. Of a tensor that was
  // left in its place.
  static void forget(const char* begin, size_t bytes);

 private:
  struct Unmap {
    size_t bytes;
    void operator()(void* data) const;
  };
  void add_tensor(const std::string& name, Tensor t, Unaligned unaligned);

  std::filesystem::path path_;
  std::unique_ptr<void, Unmap> mapping_;
  std::vector<Buffer> copies_;  // of tensors that are not aligned in the file
  std::vector<NamedTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace notellm
