// NVIDIA documents only the wrapper (fatbinary_section.h). The layout behind it was read off what nvcc 13.0 writes with
// each of its -compress-mode: zstd by default, LZ4 for `speed`.
#include "tests/softgpu/fatbin.h"

#include <cstdint>
#include <cstring>
#include <stdexcept>

// From zstd.h, which would be one more package; the library itself is on every Debian, since dpkg needs it.
extern "C" {
size_t ZSTD_decompress(void* to, size_t capacity, const void* from, size_t bytes);
unsigned ZSTD_isError(size_t code);
}

namespace softgpu {
namespace {

constexpr uint32_t wrapper_magic = 0x466243b1, fat_magic = 0xba55ed50;
constexpr uint16_t kind_ptx = 1;
constexpr uint64_t flag_lz4 = 0x2000, flag_zstd = 0x8000;

struct Wrapper {
  uint32_t magic, version;
  const char* data;
  const char* const* prelinked;  // version 2: fat binaries of the objects, up to a null
};
struct FatHeader {
  uint32_t magic;
  uint16_t version, header_bytes;
  uint64_t bytes;  // behind the header
};
struct Entry {
  uint16_t kind, version;
  uint32_t header_bytes;
  uint64_t bytes;  // behind the header
  uint32_t compressed_bytes, options_at;
  uint16_t minor, major;
  uint32_t arch;
  uint32_t name_at, name_bytes;
  uint64_t flags, zero;
  uint64_t plain_bytes;  // where compressed
};

template <class T>
T read(const char* at) {
  T result;
  std::memcpy(&result, at, sizeof result);
  return result;
}

[[noreturn]] void fail(const std::string& text) { throw std::runtime_error("fat binary: " + text); }

// LZ4's block format: a token, literals, and a match further back, again and again.
std::string lz4(const char* from, size_t bytes, size_t plain_bytes) {
  const auto *at = reinterpret_cast<const uint8_t*>(from), *end = at + bytes;
  const auto length = [&](size_t n) {
    if (n != 15) return n;
    uint8_t more = 255;
    while (more == 255 && at < end) n += more = *at++;
    return n;
  };
  std::string plain;
  plain.reserve(plain_bytes);
  while (at < end) {
    const uint8_t token = *at++;
    const size_t literals = length(token >> 4);
    if (literals > static_cast<size_t>(end - at)) fail("damaged LZ4 data");
    plain.append(reinterpret_cast<const char*>(at), literals);
    at += literals;
    if (at + 2 > end) break;  // the last sequence has no match
    const size_t back = at[0] | at[1] << 8;
    at += 2;
    const size_t match = length(token & 15) + 4;
    if (back == 0 || back > plain.size() || plain.size() + match > plain_bytes) fail("damaged LZ4 data");
    for (size_t i = 0; i < match; ++i) plain += plain[plain.size() - back];  // byte by byte: it may overlap itself
  }
  return plain;
}

std::string text_of(const Entry& entry, const char* data) {
  std::string text;
  if (entry.flags & flag_zstd) {
    text.resize(entry.plain_bytes);
    const size_t got = ZSTD_decompress(text.data(), text.size(), data, entry.compressed_bytes);
    if (ZSTD_isError(got) || got != text.size()) fail("damaged zstd data");
  } else if (entry.flags & flag_lz4) {
    text = lz4(data, entry.compressed_bytes, entry.plain_bytes);
    if (text.size() != entry.plain_bytes) fail("damaged LZ4 data");
  } else {
    text.assign(data, entry.bytes);
  }
  text.resize(text.find_last_not_of('\0') + 1);  // padding
  if (text.find(".version") == std::string::npos)
    fail("compressed in a way that softgpu does not know (flags " + std::to_string(entry.flags) + ")");
  return text;
}

// Into `texts`: the newest PTX for the GPU, where there is any.
void add_newest(const char* fat, int arch, std::vector<std::string>& texts) {
  const auto header = read<FatHeader>(fat);
  if (header.magic != fat_magic) fail("wrong magic number");
  const char* at = fat + header.header_bytes;
  const char* end = at + header.bytes;
  Entry newest{};
  const char* newest_data = nullptr;
  while (at + sizeof(Entry) <= end) {
    const auto entry = read<Entry>(at);
    if (entry.header_bytes < sizeof(Entry)) fail("entry with a short header");
    if (entry.kind == kind_ptx && static_cast<int>(entry.arch) <= arch && entry.arch >= newest.arch) {
      newest = entry;
      newest_data = at + entry.header_bytes;
    }
    at += entry.header_bytes + entry.bytes;
  }
  if (newest_data) texts.push_back(text_of(newest, newest_data));
}

}  // namespace

std::vector<std::string> ptx_of(const void* pointer, int arch) {
  const auto* wrapper = static_cast<const Wrapper*>(pointer);
  if (wrapper->magic != wrapper_magic) fail("wrapper with a wrong magic number");
  std::vector<std::string> texts;
  if (wrapper->version == 2 && wrapper->prelinked)
    for (const char* const* fat = wrapper->prelinked; *fat; ++fat) add_newest(*fat, arch, texts);
  else
    add_newest(wrapper->data, arch, texts);
  return texts;
}

}  // namespace softgpu
