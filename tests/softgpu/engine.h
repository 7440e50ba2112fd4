// The interpreter: PTX text in, kernels that can be run out.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tests/softgpu/memory.h"

namespace softgpu {

using Dim3 = std::array<uint32_t, 3>;

struct Module;  // one PTX text, decoded

struct Parameter {
  uint32_t offset, bytes;  // in the block of parameters
};
struct Kernel {
  std::string name;  // mangled, as registered
  std::vector<Parameter> parameters;
  uint32_t parameter_bytes = 0;
  uint32_t shared_bytes = 0;    // static
  uint32_t max_threads = 1024;  // .maxntid, or 1024
  uint32_t registers = 0;       // an estimate, for cudaFuncGetAttributes
};

// Throws std::runtime_error naming line and text of what it does not know. Variables of the module get device memory.
std::shared_ptr<Module> load_module(const std::string& ptx);
const Kernel* find_kernel(const Module& module, const std::string& name);  // null: not there
// Device address and size of a module's variable; 0: not there.
uint64_t find_variable(const Module& module, const std::string& name, size_t& bytes);

struct Launch {
  const Module* module;
  const Kernel* kernel;
  Dim3 grid, block;
  uint32_t dynamic_shared_bytes;
  std::vector<std::byte> parameters;
  WorkId work;
};
// Runs all blocks to their end, on SOFTGPU_THREADS threads (default: the cores). False: an access was out of bounds or
// misaligned (reported); the launch was given up, as a GPU does.
bool run(const Launch& launch);

// What kernels did so far, by kernel; `softgpu_report` prints it (SOFTGPU_REPORT=FILE: at the end of the process).
struct Counters {
  uint64_t launches = 0, threads = 0;
  // Warp instructions by class.
  uint64_t instructions = 0, mma = 0, ldmatrix = 0, shared = 0, global = 0, control = 0, sync = 0, special = 0,
           other = 0;
  uint64_t thread_instructions = 0;
  uint64_t mma_flops = 0;
  uint64_t product_flops = 0;                                  // of a library's matrix products: 2·m·k·n each
  uint64_t global_read_bytes = 0, global_write_bytes = 0;      // that threads asked for
  uint64_t global_read_sectors = 0, global_write_sectors = 0;  // 32 bytes each, counted per request
  uint64_t global_fetched_sectors = 0;  // of those read, what a first-level cache of the block's own would not hold
  uint64_t shared_requests = 0, shared_conflicts = 0;  // conflicts: cycles beyond the fewest possible
  // Instructions of the innermost loop that holds most of the kernel's mma, and the mma among them.
  uint64_t loop_instructions = 0, loop_mma = 0, loop_shared_conflicts = 0;
};
// A library's call, counted among the kernels' launches under its own name, and the products that it was asked for.
void count_call(const std::string& name, uint64_t product_flops);
std::vector<std::pair<std::string, Counters>> all_counters();  // by demangled name, sorted

}  // namespace softgpu

extern "C" {
// The sum over kernels whose demangled name contains `name`. False: none has run.
bool softgpu_counters(const char* name, softgpu::Counters* counters);
void softgpu_reset_counters();
}
