// What is in a file or folder that this program writes or reads, in words; each checks what it describes.
#pragma once

#include <cstdint>
#include <filesystem>

namespace notellm {

// Prints what is there. notes: so many notes of shards are shown in words. Throws Error: io (missing), usage (notes of
// something that has none), data or checkpoint (foreign or damaged).
void inspect(const std::filesystem::path& path, int64_t notes);

// … a folder of shards, or one .h5 file of it (a shard, or note vectors).
void inspect_shards(const std::filesystem::path& folder, int64_t notes);
void inspect_hdf5(const std::filesystem::path& file, int64_t notes);
void inspect_run(const std::filesystem::path& folder);
void inspect_checkpoint(const std::filesystem::path& folder);
void inspect_safetensors(const std::filesystem::path& file);
void inspect_tokenizer(const std::filesystem::path& file);

}  // namespace notellm
