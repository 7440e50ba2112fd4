#include "runtime/memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "runtime/gpu.h"

namespace notellm {
namespace {
constexpr int64_t huge_page_bytes = 2 << 20;
constexpr int64_t alignment_bytes = 64;

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
}  // namespace

Buffer::Buffer(int64_t bytes, Memory memory, const char* what) : bytes_(bytes), memory_(memory) {
  NOTELLM_CHECK(bytes >= 0, "buffer of {} bytes", bytes);
  if (bytes == 0) return;
  if constexpr (cuda_built)
    if (memory != Memory::host) {
      data_ = gpu::allocate(bytes, memory, what);
      return;
    }
  NOTELLM_CHECK(memory == Memory::host, "GPU memory in a build without CUDA");
  void* p = mmap(nullptr, round_up(bytes, huge_page_bytes), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED)
    fail(ErrorKind::internal, "cannot reserve {} MiB of memory: {}", bytes >> 20, std::strerror(errno));
  if (bytes >= huge_page_bytes) madvise(p, round_up(bytes, huge_page_bytes), MADV_HUGEPAGE);  // advice: may be refused
  data_ = p;
}

Buffer::~Buffer() {
  if (!data_) return;
  if constexpr (cuda_built)
    if (memory_ != Memory::host) {
      gpu::release(data_, memory_);
      return;
    }
  munmap(data_, round_up(bytes_, huge_page_bytes));
}

Tensor Buffer::tensor(DType dtype, std::initializer_list<int64_t> sizes) const {
  Tensor t(data_, dtype, sizes);
  NOTELLM_CHECK(t.bytes() <= bytes_, "{} does not fit a buffer of {} bytes", describe(t), bytes_);
  return t;
}

void copy(Stream& stream, Tensor from, Tensor to) {
  NOTELLM_CHECK(from.dtype == to.dtype && from.size() == to.size(), "copy of {} to {}", describe(from), describe(to));
  if (from.bytes() == 0) return;
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::copy(stream, from.data, to.data, from.bytes());
  std::memcpy(to.data, from.data, from.bytes());
}

void set_zero(Stream& stream, Tensor t) {
  if (t.bytes() == 0) return;
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::set_zero(stream, t.data, t.bytes());
  std::memset(t.data, 0, t.bytes());
}

Buffer on_device(Device device, Buffer host) {
  if (device == Device::cpu) return host;
  Buffer result(host.bytes(), Memory::device, "parameters");
  Stream stream(device);
  const auto all = [](const Buffer& b) { return Tensor(b.data(), DType::bf16, {b.bytes() / 2}); };
  copy(stream, all(host), all(result));
  stream.synchronize();
  return result;
}

Tensor Arena::allocate(DType dtype, std::initializer_list<int64_t> sizes) {
  Tensor t(static_cast<char*>(buffer_.data()) + used_, dtype, sizes);
  const int64_t needed = round_up(t.bytes(), alignment_bytes);
  if (used_ + needed > buffer_.bytes())
    fail(ErrorKind::internal,
         "the step's arena is full: {} needs {} MiB more, {} of {} MiB are in use; lower train.micro_batch_pairs",
         describe(t), needed >> 20, used_ >> 20, buffer_.bytes() >> 20);
  used_ += needed;
  peak_ = std::max(peak_, used_);
  return t;
}

}  // namespace notellm
