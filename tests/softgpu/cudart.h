// What the files of the stand-in libcudart share.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "tests/softgpu/memory.h"

namespace softgpu {

// The pretended GPU, by SOFTGPU_ARCH: an A100 (80, the default), an H100 (90), or one that is too old (75).
struct DeviceModel {
  int arch, multiprocessors;
  int shared_per_multiprocessor, shared_per_block;  // the latter: with cudaFuncSetAttribute
  int blocks_per_multiprocessor, threads_per_multiprocessor;
  int l2_bytes;
};
const DeviceModel& device_model();
constexpr int shared_without_asking = 48 << 10;
constexpr int shared_reserved_per_block = 1 << 10;

// A call's way out: an error is kept for cudaGetLastError.
cudaError_t result(cudaError_t status);
// What stands in every call's way: no driver, no GPU, an illegal access of earlier work.
cudaError_t ready();
// An invalid_call finding, and its status for the caller.
cudaError_t refuse(const char* call, const std::string& why, cudaError_t status);

// A <<<>>> launch drops the error it gets: the program has to ask for it before it goes on.
void launch_failed(const std::string& kernel, cudaError_t status);
void look_for_unchecked_launch();

// Demangled, without its arguments.
std::string readable(const std::string& mangled);

// Device address and size of a variable's host shadow; 0: not registered, or not in the PTX.
uint64_t symbol_address(const void* host_variable, size_t& bytes);

// Pinned memory.
bool is_pinned(const void* address);
void release_all_pinned();

}  // namespace softgpu
