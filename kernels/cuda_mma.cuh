// Tensor core products of bf16, the loads that feed them, and copies from global to shared memory that go on while the
// warp does. Fragment layouts are those of the PTX ISA, chapters "mma.m16n8k16" and "ldmatrix"; g = lane / 4,
// t = lane % 4 below. Two bf16 in a register: the one of the lower index in the lower half.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

namespace notellm::gpu {

// f(0), f(1) … f(n − 1), where the argument is a type's `value`: what is done with it is known to the compiler, so that
// it can stand in an instruction as an offset.
template <int n, class F>
__device__ __forceinline__ void unrolled(F&& f) {
  [&]<int... i>(std::integer_sequence<int, i...>) { (f(std::integral_constant<int, i>{}), ...); }
  (std::make_integer_sequence<int, n>{});
}

// A [16 × 16]: x0 = A[g][2t, 2t+1], x1 = A[g+8][2t, 2t+1], x2 = A[g][2t+8, 2t+9], x3 = A[g+8][2t+8, 2t+9].
struct FragmentA {
  uint32_t x0, x1, x2, x3;
};
// Two B [16 × 8], of columns next to each other: of the first x0 = B[2t, 2t+1][g], x1 = B[2t+8, 2t+9][g]; of the second
// x2 and x3.
struct FragmentB2 {
  uint32_t x0, x1, x2, x3;
};
// C [16 × 8]: x[0], x[1] = C[g][2t, 2t+1]; x[2], x[3] = C[g+8][2t, 2t+1].
struct FragmentC {
  float x[4];
};

// a · b + c
__device__ inline FragmentC mma(const FragmentA& a, uint32_t b0, uint32_t b1, const FragmentC& c) {
  FragmentC d;
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d.x[0]), "=f"(d.x[1]), "=f"(d.x[2]), "=f"(d.x[3])
      : "r"(a.x0), "r"(a.x1), "r"(a.x2), "r"(a.x3), "r"(b0), "r"(b1), "f"(c.x[0]), "f"(c.x[1]), "f"(c.x[2]),
        "f"(c.x[3]));
  return d;
}

// Address in the shared window, as ldmatrix and cp.async want it.
__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Four 8 × 8 matrices, whose rows are 16 bytes: lane i gives the address (without `offset`, a constant) of row i % 8 of
// matrix i / 8; register j of a lane then holds M_j[g][2t, 2t+1], and transposed M_j[2t, 2t+1][g].
template <class Fragment, int offset = 0>
__device__ inline Fragment load_matrices(uint32_t address) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4+%5];"
               : "=r"(f.x0), "=r"(f.x1), "=r"(f.x2), "=r"(f.x3)
               : "r"(address), "n"(offset)
               : "memory");
  return f;
}
template <class Fragment, int offset = 0>
__device__ inline Fragment load_matrices_transposed(uint32_t address) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4+%5];"
               : "=r"(f.x0), "=r"(f.x1), "=r"(f.x2), "=r"(f.x3)
               : "r"(address), "n"(offset)
               : "memory");
  return f;
}

// low in the lower half.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
// 2^x to 2 ulp; 0 for −inf.
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 16 bytes from global to shared memory, past L1; both addresses are multiples of 16. They are there after the wait of
// the thread that asked, and for other threads after a barrier behind that.
template <int offset = 0>
__device__ inline void copy_async(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0+%2], [%1], 16;" ::"r"(to), "l"(from), "n"(offset) : "memory");
}
// The same with 4 bytes.
__device__ inline void copy_async_4(uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
// What the thread has asked for since its last commit is a group.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the thread's last `pending` groups are under way.
template <int pending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

}  // namespace notellm::gpu
