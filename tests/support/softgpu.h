// What a test can ask softgpu (tests/softgpu/README.md), where the process runs on it.
#pragma once

#include <dlfcn.h>

#include <string>

#include "tests/softgpu/engine.h"

namespace notellm::softgpu_support {

// Null: the process runs on NVIDIA's library.
template <class Function>
Function* find(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}
inline bool present() { return find<int()>("softgpu_finding_count") != nullptr; }

// The findings so far, one text after the other; they are then forgotten.
inline std::string take_findings() {
  std::string all;
  auto* count = find<int()>("softgpu_finding_count");
  auto* text = find<const char*(int)>("softgpu_finding");
  const int n = count ? count() : 0;
  for (int i = 0; i < n; ++i) all += text(i);
  if (n > 0) find<void()>("softgpu_clear_findings")();
  return all;
}

// What the kernels whose names contain `name` did since reset_counters. False: none has run, or no softgpu.
inline bool counters(const char* name, softgpu::Counters& sum) {
  auto* get = find<bool(const char*, softgpu::Counters*)>("softgpu_counters");
  return get && get(name, &sum);
}
inline void reset_counters() {
  if (auto* reset = find<void()>("softgpu_reset_counters")) reset();
}

}  // namespace notellm::softgpu_support
