#include "runtime/transfer.h"

#include <cstring>

namespace notellm {
namespace {

constexpr int64_t alignment_bytes = 256;  // of each array in the block: any kernel's vector accesses

int64_t aligned(int64_t bytes) { return (bytes + alignment_bytes - 1) / alignment_bytes * alignment_bytes; }

// A buffer that is large enough, with room for somewhat larger ones.
void grow(Buffer& buffer, int64_t bytes, Memory memory, const char* what) {
  if (buffer.bytes() < bytes) buffer = Buffer(bytes + bytes / 4, memory, what);
}

Tensor placed(Tensor t, const Buffer& buffer, int64_t at) {
  t.data = static_cast<char*>(buffer.data()) + at;
  return t;
}

}  // namespace

void Upload::send(std::initializer_list<std::pair<Tensor, Tensor*>> items) {
  if (device_ == Device::cpu) {
    for (const auto& [host, view] : items) *view = host;
    return;
  }
  int64_t bytes = 0;
  for (const auto& [host, view] : items) bytes += aligned(host.bytes());
  sent_.synchronize();
  read_.wait(copies_);
  grow(pinned_, bytes, Memory::pinned, "");
  grow(block_, bytes, Memory::device, "batches");
  int64_t at = 0;
  for (const auto& [host, view] : items) {
    if (host.bytes() > 0) std::memcpy(static_cast<char*>(pinned_.data()) + at, host.data, host.bytes());
    *view = placed(host, block_, at);
    at += aligned(host.bytes());
  }
  if (bytes > 0) copy(copies_, pinned_.tensor(DType::i32, {bytes / 4}), block_.tensor(DType::i32, {bytes / 4}));
  sent_.record(copies_);
}

std::vector<Tensor> Download::fetch(Stream& stream, std::initializer_list<Tensor> tensors) {
  int64_t bytes = 0;
  for (const Tensor& t : tensors) bytes += aligned(t.bytes());
  arrived_.synchronize();
  grow(memory_, bytes, device_ == Device::cpu ? Memory::host : Memory::pinned, "");
  std::vector<Tensor> results;
  int64_t at = 0;
  for (const Tensor& t : tensors) {
    results.push_back(placed(t, memory_, at));
    copy(stream, t, results.back());
    at += aligned(t.bytes());
  }
  arrived_.record(stream);
  return results;
}

}  // namespace notellm
