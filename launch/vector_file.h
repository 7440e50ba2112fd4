// Files of note vectors: what `embed` writes.
//
//   FILE.h5    vectors  f32 [notes, d], rows normalised;  ids  [notes] texts (UTF-8);  text attributes format
//              ("notellm vectors 1"), checkpoint, step, tokenizer (digest)
//   FILE.npy   vectors as above (NumPy's format 1.0), and FILE.ids.txt with one id a line
#pragma once

#include <filesystem>
#include <map>
#include <span>
#include <string>

#include "runtime/tensor.h"

namespace notellm {

inline constexpr const char* vector_format = "notellm vectors 1";

// Where they come from: attributes of the .h5 file.
using VectorAttributes = std::map<std::string, std::string>;

// Throws Error(usage) unless the name ends in .h5 or .npy.
void check_vector_file_name(const std::filesystem::path& path);

// Throws Error(io) where write_vectors could not begin: require_writable of each file that it writes.
void require_vectors_writable(const std::filesystem::path& path);

// Throws Error(data) for an id that the file cannot hold: with a line break (.npy), with a NUL byte (.h5, whose texts
// end there).
void check_vector_ids(const std::filesystem::path& path, std::span<const std::string> ids);

// Writes vectors [ids.size(), d] f32 to a .h5 or .npy file, as the name ends. The files appear whole or not at all; of
// the two of .npy, the vectors come last. Throws Error: io, and as the two above.
void write_vectors(const std::filesystem::path& path, std::span<const std::string> ids, Tensor vectors,
                   const VectorAttributes& attributes);

// What is in a .h5 file of vectors.
struct VectorFileInfo {
  int64_t notes = 0, dimensions = 0;
  VectorAttributes attributes;
  int64_t not_normalised = 0;  // rows whose length is not 1 within 1e-3
};
// Reads the file whole. Throws Error(data): another format, damaged.
VectorFileInfo read_vector_file_info(const std::filesystem::path& path);

}  // namespace notellm
