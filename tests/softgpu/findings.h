// What softgpu finds wrong. A finding is printed once for each (kind, kernel, source line), counted always, and makes
// the process end with exit code 99.
#pragma once

#include <cstdint>
#include <string>

namespace softgpu {

enum class FindingKind : uint8_t {
  out_of_bounds,  // any space
  misaligned,
  uninitialized,     // a read of memory that nobody wrote
  race,              // two threads, one of them writing, nothing between that orders them
  barrier,           // bar.sync or a warp-wide instruction that not all its threads reach
  missing_wait,      // the destination of a cp.async was touched before its wait
  stream_order,      // two pieces of work on different streams, nothing between that orders them
  leak,              // device memory, stream or event alive at the end
  unchecked_launch,  // a launch that failed and whose error nobody asked for
  invalid_call,      // arguments of a library call that the real library refuses or leaves undefined
  unsupported,       // an instruction or call that softgpu does not know
};
const char* name_of(FindingKind kind);

struct Place {         // where; what does not apply stays as it is
  std::string kernel;  // demangled, without arguments; or the library call
  std::string file;
  int line = 0;
  std::string inlined_file = {};  // of a function that was inlined into that line; "": none
  int inlined_line = 0;
  int64_t block[3] = {-1, -1, -1}, thread[3] = {-1, -1, -1};
};

// Thread-safe.
void report(FindingKind kind, const Place& place, const std::string& text);

}  // namespace softgpu

// For tests, found by dlsym; their declarations stand in tests/support/softgpu.h.
extern "C" {
int softgpu_finding_count();
const char* softgpu_finding(int i);  // its printed text; valid until the next call
void softgpu_clear_findings();       // as if there had been none: for tests of softgpu itself
}
