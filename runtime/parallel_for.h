// A loop on all OpenMP threads whose work may throw.
#pragma once

#include <cstdint>
#include <exception>

namespace notellm {

// work(i) for 0 ≤ i < count, in any order: threads take 16 at a time. No exception may leave a parallel region: one of
// those that were thrown is thrown again behind it.
template <class Work>
void parallel_for(int64_t count, const Work& work) {
  std::exception_ptr error;
#pragma omp parallel for schedule(dynamic, 16)
  for (int64_t i = 0; i < count; ++i) {
    try {
      work(i);
    } catch (...) {
#pragma omp critical
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace notellm
