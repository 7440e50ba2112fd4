// Every instruction that computes in registers, with results computed by hand, and those that are refused.
#include <cmath>
#include <limits>

#include "tests/softgpu/snippet.h"

namespace softgpu {
namespace {

constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
constexpr int64_t min32 = std::numeric_limits<int32_t>::min(), max32 = std::numeric_limits<int32_t>::max();
constexpr int64_t min64 = std::numeric_limits<int64_t>::min();

TEST(Instructions, AddSubtractNegate) {
  check("add.u32 %r9, %r1, %r2;", 'r', {{1, 2, 0, 3}, {0xffffffff, 1, 0, 0}});
  check("add.s32 %r9, %r1, -5;", 'r', {{1, 0, 0, -4}, {min32, 0, 0, max32 - 4}});
  check("sub.s32 %r9, %r1, %r2;", 'r', {{1, 2, 0, -1}, {min32, 1, 0, max32}});
  check("add.s64 %rd9, %rd1, %rd2;", 'd', {{-1, 2, 0, 1}, {0xffffffff, 1, 0, 0x100000000}});
  check("sub.s64 %rd9, %rd1, %rd2;", 'd', {{0, 1, 0, -1}});
  check("add.s16 %rs9, %rs1, %rs2;", 's', {{0xffff, 2, 0, 1}});
  check("sub.s16 %rs9, %rs1, %rs2;", 's', {{0, 1, 0, 0xffff}});
  check("neg.s32 %r9, %r1;", 'r', {{5, 0, 0, -5}, {min32, 0, 0, min32}});
  check("neg.s64 %rd9, %rd1;", 'd', {{5, 0, 0, -5}});
  check("abs.s32 %r9, %r1;", 'r', {{-5, 0, 0, 5}, {5, 0, 0, 5}, {min32, 0, 0, min32}});
  check("abs.s64 %rd9, %rd1;", 'd', {{-5, 0, 0, 5}});
}

TEST(Instructions, Products) {
  check("mul.lo.s32 %r9, %r1, %r2;", 'r', {{-3, 4, 0, -12}, {0x10001, 0x10001, 0, 0x20001}});
  check("mul.lo.s64 %rd9, %rd1, %rd2;", 'd', {{-3, 4, 0, -12}, {0x100000001, 0x100000001, 0, 0x200000001}});
  check("mul.lo.s16 %rs9, %rs1, %rs2;", 's', {{0x101, 0x101, 0, 0x201}});
  check("mul.hi.u32 %r9, %r1, %r2;", 'r', {{0x80000000, 4, 0, 2}, {0xffffffff, 0xffffffff, 0, 0xfffffffe}});
  check("mul.hi.s32 %r9, %r1, %r2;", 'r', {{0x80000000, 4, 0, -2}, {-1, -1, 0, 0}});
  check("mul.hi.u64 %rd9, %rd1, %rd2;", 'd', {{min64, 4, 0, 2}});
  check("mul.hi.s64 %rd9, %rd1, %rd2;", 'd', {{min64, 4, 0, -2}});
  check("mul.wide.u32 %rd9, %r1, %r2;", 'd', {{0xffffffff, 2, 0, 0x1fffffffe}});
  check("mul.wide.s32 %rd9, %r1, %r2;", 'd', {{0xffffffff, 2, 0, -2}, {min32, min32, 0, int64_t{1} << 62}});
  check("mul.wide.u16 %r9, %rs1, %rs2;", 'r', {{0xffff, 0xffff, 0, 0xfffe0001}});
  check("mul.wide.s16 %r9, %rs1, %rs2;", 'r', {{0xffff, 5, 0, -5}});
  check("mad.lo.s32 %r9, %r1, %r2, %r3;", 'r', {{-3, 4, 5, -7}});
  check("mad.hi.u32 %r9, %r1, %r2, %r3;", 'r', {{0x80000000, 4, 5, 7}});
  check("mad.hi.s32 %r9, %r1, %r2, %r3;", 'r', {{0x80000000, 4, 5, 3}});
  check("mad.lo.s64 %rd9, %rd1, %rd2, %rd3;", 'd', {{-3, 4, 5, -7}});
  check("mad.wide.s32 %rd9, %r1, %r2, %rd3;", 'd', {{-3, 4, int64_t{1} << 40, (int64_t{1} << 40) - 12}});
  check("mad.wide.u32 %rd9, %r1, 2, %rd3;", 'd', {{0xffffffff, 0, 1, 0x1ffffffff}});
  check("mad.wide.u16 %r9, %rs1, %rs2, %r3;", 'r', {{0xffff, 2, 1, 0x1ffff}});
}

TEST(Instructions, Quotients) {
  check("div.s32 %r9, %r1, %r2;", 'r', {{-7, 2, 0, -3}, {7, -2, 0, -3}, {min32, -1, 0, min32}, {5, 0, 0, -1}});
  check("div.u32 %r9, %r1, %r2;", 'r', {{0xffffffff, 2, 0, 0x7fffffff}, {5, 0, 0, 0xffffffff}});
  check("div.s64 %rd9, %rd1, %rd2;", 'd', {{-7, 2, 0, -3}, {min64, -1, 0, min64}, {5, 0, 0, -1}});
  check("div.u64 %rd9, %rd1, %rd2;", 'd', {{-1, 2, 0, int64_t{0x7fffffffffffffff}}});
  check("div.u16 %rs9, %rs1, %rs2;", 's', {{0xfffe, 2, 0, 0x7fff}});
  check("rem.s32 %r9, %r1, %r2;", 'r', {{-7, 2, 0, -1}, {7, -2, 0, 1}, {min32, -1, 0, 0}, {5, 0, 0, 5}});
  check("rem.u32 %r9, %r1, %r2;", 'r', {{0xffffffff, 16, 0, 15}});
  check("rem.s64 %rd9, %rd1, %rd2;", 'd', {{-7, 2, 0, -1}, {min64, -1, 0, 0}});
  check("rem.u64 %rd9, %rd1, %rd2;", 'd', {{-1, 16, 0, 15}});
}

TEST(Instructions, MinimumAndMaximum) {
  check("min.s32 %r9, %r1, %r2;", 'r', {{-1, 1, 0, -1}, {2, 1, 0, 1}});
  check("min.u32 %r9, %r1, %r2;", 'r', {{-1, 1, 0, 1}});
  check("max.s32 %r9, %r1, %r2;", 'r', {{-1, 1, 0, 1}});
  check("max.u32 %r9, %r1, %r2;", 'r', {{-1, 1, 0, -1}});
  check("min.s64 %rd9, %rd1, %rd2;", 'd', {{-1, 1, 0, -1}});
  check("max.u64 %rd9, %rd1, %rd2;", 'd', {{-1, 1, 0, -1}});
  check("min.s16 %rs9, %rs1, %rs2;", 's', {{0xffff, 1, 0, 0xffff}});
  check("max.u16 %rs9, %rs1, %rs2;", 's', {{0xffff, 1, 0, 0xffff}});
  check("min.f32 %f9, %f1, %f2;", 'f',
        {{1.0f, 2.0f, 0, 1.0f},
         {nan, 2.0f, 0, 2.0f},
         {2.0f, nan, 0, 2.0f},
         {nan, nan, 0, nan},
         {-0.0f, 0.0f, 0, -0.0f},
         {0.0f, -0.0f, 0, -0.0f},
         {-inf, 1.0f, 0, -inf}});
  check("max.f32 %f9, %f1, %f2;", 'f',
        {{1.0f, 2.0f, 0, 2.0f},
         {nan, 2.0f, 0, 2.0f},
         {2.0f, nan, 0, 2.0f},
         {nan, nan, 0, nan},
         {-0.0f, 0.0f, 0, 0.0f},
         {0.0f, -0.0f, 0, 0.0f},
         {-inf, 1.0f, 0, 1.0f}});
  check("max.f64 %fd9, %fd1, %fd2;", 'F', {{1.0, 2.0, 0, 2.0}});
}

TEST(Instructions, LogicAndShifts) {
  check("and.b32 %r9, %r1, %r2;", 'r', {{12, 10, 0, 8}});
  check("or.b32 %r9, %r1, %r2;", 'r', {{12, 10, 0, 14}});
  check("xor.b32 %r9, %r1, %r2;", 'r', {{12, 10, 0, 6}});
  check("not.b32 %r9, %r1;", 'r', {{12, 0, 0, ~12}});
  check("and.b64 %rd9, %rd1, %rd2;", 'd', {{-1, int64_t{1} << 40, 0, int64_t{1} << 40}});
  check("or.b16 %rs9, %rs1, %rs2;", 's', {{0xf0f0, 0x0f00, 0, 0xfff0}});
  check("not.b64 %rd9, %rd1;", 'd', {{0, 0, 0, -1}});
  check("not.b16 %rs9, %rs1;", 's', {{0xff00, 0, 0, 0xff}});
  check("shl.b32 %r9, %r1, %r2;", 'r', {{3, 4, 0, 48}, {1, 31, 0, 0x80000000}, {1, 32, 0, 0}, {1, -1, 0, 0}});
  check("shr.u32 %r9, %r1, %r2;", 'r', {{0x80000000, 31, 0, 1}, {0x80000000, 32, 0, 0}, {-1, 400, 0, 0}});
  check("shr.s32 %r9, %r1, %r2;", 'r', {{0x80000000, 31, 0, -1}, {0x80000000, 32, 0, -1}, {4, 1, 0, 2}, {4, 99, 0, 0}});
  check("shl.b64 %rd9, %rd1, %r2;", 'd', {{1, 63, 0, min64}, {1, 64, 0, 0}});
  check("shr.s64 %rd9, %rd1, %r2;", 'd', {{min64, 63, 0, -1}, {min64, 64, 0, -1}});
  check("shr.u64 %rd9, %rd1, 32;", 'd', {{min64, 0, 0, 0x80000000}});
  check("shl.b16 %rs9, %rs1, %r2;", 's', {{0x8001, 1, 0, 2}, {1, 16, 0, 0}});
  check("shr.s16 %rs9, %rs1, %r2;", 's', {{0x8000, 15, 0, 0xffff}, {0x8000, 16, 0, 0xffff}});
  check("shr.u16 %rs9, %rs1, %r2;", 's', {{0x8000, 15, 0, 1}, {0x8000, 16, 0, 0}});
  // Bits above the 16 do not matter: a negative value extended into the register.
  check("cvt.s16.s8 %rs4, %r1; shr.u16 %rs9, %rs4, 8;", 's', {{0x80, 0, 0, 0xff}});
  check("cvt.s16.s8 %rs4, %r1; div.u16 %rs9, %rs4, %rs2;", 's', {{0x80, 0xff80, 0, 1}});
  check("cvt.s16.s8 %rs4, %r1; cvt.u32.u16 %r9, %rs4;", 'r', {{0x80, 0, 0, 0xff80}});
  check("cvt.s16.s8 %rs4, %r1; mov.b32 %r9, {%rs4, %rs2};", 'r', {{0x80, 1, 0, 0x1ff80}});
  check("cvt.s16.s8 %rs4, %r1; setp.eq.u16 %p9, %rs4, %rs2;", 'p', {{0x80, 0xff80, 0, 1}});
  check("cvt.s16.s8 %rs4, %r1; cvt.f32.bf16 %f9, %rs4;", 'f', {{0x80, 0, 0, std::bit_cast<float>(0xff800000u)}});
}

TEST(Instructions, Bits) {
  check("popc.b32 %r9, %r1;", 'r', {{-1, 0, 0, 32}, {0x101, 0, 0, 2}});
  check("popc.b64 %r9, %rd1;", 'r', {{-1, 0, 0, 64}});
  check("clz.b32 %r9, %r1;", 'r', {{0, 0, 0, 32}, {1, 0, 0, 31}, {-1, 0, 0, 0}});
  check("clz.b64 %r9, %rd1;", 'r', {{0, 0, 0, 64}, {1, 0, 0, 63}});
  check("bfind.u32 %r9, %r1;", 'r', {{0, 0, 0, -1}, {1, 0, 0, 0}, {-1, 0, 0, 31}});
  check("bfind.s32 %r9, %r1;", 'r', {{0, 0, 0, -1}, {-1, 0, 0, -1}, {-3, 0, 0, 1}, {5, 0, 0, 2}});
  check("bfind.shiftamt.u32 %r9, %r1;", 'r', {{0, 0, 0, -1}, {1, 0, 0, 31}});
  check("brev.b32 %r9, %r1;", 'r', {{1, 0, 0, 0x80000000}, {0x12345678, 0, 0, 0x1e6a2c48}});
  check("brev.b64 %rd9, %rd1;", 'd', {{1, 0, 0, min64}, {2, 0, 0, int64_t{1} << 62}});
  check("lop3.b32 %r9, %r1, %r2, %r3, 0xE8;", 'r', {{12, 10, 9, 8 | (12 & 9) | (10 & 9)}});  // majority
  check("lop3.b32 %r9, %r1, %r2, %r3, 0x30;", 'r', {{12, 10, 7, 4}});                        // a & ~b
  check("lop3.b32 %r9, %r1, %r2, %r3, 0x96;", 'r', {{12, 10, 9, 12 ^ 10 ^ 9}});
  check("bfe.u32 %r9, %r1, %r2, %r3;", 'r',
        {{0x12345678, 8, 8, 0x56},
         {-1, 28, 8, 15},
         {-1, 0, 0, 0},
         {-1, 40, 4, 0},
         {-1, 0, 64, -1},
         {0x80, 256 + 4, 4, 8}});
  check("bfe.s32 %r9, %r1, %r2, %r3;", 'r',
        {{0x80, 4, 4, -8}, {0x80, 4, 3, 0}, {0x80000000, 28, 8, -8}, {min32, 40, 4, -1}});
  check("bfe.u64 %rd9, %rd1, %r2, %r3;", 'd', {{0x1234567812345678, 32, 16, 0x5678}});
  check("bfe.s64 %rd9, %rd1, %r2, %r3;", 'd', {{min64, 62, 2, -2}});
  check("bfi.b32 %r9, %r1, %r2, %r3, 8;", 'r',
        {{0xab, 0x12345678, 8, 0x1234ab78}, {0xab, 7, 32, 7}, {0xab, 7, 28, 0xb0000007}});
  check("bfi.b32 %r9, %r1, %r2, 4, %r3;", 'r', {{-1, 0, 0, 0}, {-1, 0, 99, 0xfffffff0}});
  check("bfi.b64 %rd9, %rd1, %rd2, %r3, 32;", 'd',
        {{0x1234567887654321, 0x11111111, 32, 0x8765432111111111},
         {0x1234567887654321, min64, 60, 0x1000000000000000},
         {0xff, 7, 64, 7}});
  check("bfi.b64 %rd9, %rd1, %rd2, 8, %r3;", 'd', {{-1, 5, 0, 5}, {-1, 0, 64, -256}, {-1, 0, 4, 0xf00}});
  check("prmt.b32 %r9, %r1, %r2, %r3;", 'r',
        {{0x33221100, 0x77665544, 0x3210, 0x33221100},
         {0x33221100, 0x77665544, 0x7654, 0x77665544},
         {0x33221100, 0x77665544, 0x0246, 0x00224466},
         {0x8000, 0x7f, 0xc999, 0x00ffffff}});
  check("shf.l.wrap.b32 %r9, %r1, %r2, %r3;", 'r', {{0x80000001, 0x7, 4, 0x78}, {5, 6, 0, 6}, {5, 6, 32, 6}});
  check("shf.r.wrap.b32 %r9, %r1, %r2, %r3;", 'r', {{0x80000010, 0x7, 4, 0x78000001}, {5, 6, 32, 5}});
  check("shf.l.clamp.b32 %r9, %r1, %r2, %r3;", 'r', {{5, 6, 32, 5}, {5, 6, 99, 5}, {0x80000000, 1, 1, 3}});
  check("shf.r.clamp.b32 %r9, %r1, %r2, %r3;", 'r', {{5, 6, 32, 6}, {5, 6, 99, 6}});
}

TEST(Instructions, Floats) {
  check("add.f32 %f9, %f1, %f2;", 'f',
        {{1.5f, 2.0f, 0, 3.5f}, {inf, -inf, 0, nan}, {16777216.0f, 1.0f, 0, 16777216.0f}});
  check("add.rn.f32 %f9, %f1, 0f3F800000;", 'f', {{1.5f, 0, 0, 2.5f}});
  check("sub.f32 %f9, %f1, %f2;", 'f', {{1.5f, 2.0f, 0, -0.5f}});
  check("mul.f32 %f9, %f1, %f2;", 'f', {{1.5f, 2.0f, 0, 3.0f}, {1e-40f, 0.5f, 0, 1e-40f * 0.5f}});
  check("mul.ftz.f32 %f9, %f1, %f2;", 'f', {{1e-40f, 2.0f, 0, 0.0f}, {-1e-38f, 0.5f, 0, -0.0f}, {1.5f, 2.0f, 0, 3.0f}});
  check("add.sat.f32 %f9, %f1, %f2;", 'f',
        {{1.0f, 2.0f, 0, 1.0f}, {-1.0f, 0.5f, 0, 0.0f}, {0.25f, 0.5f, 0, 0.75f}, {nan, 0.5f, 0, 0.0f}});
  const float e = 1 + 0x1p-12f;  // e·e = 1 + 2^-11 + 2^-24
  check("fma.rn.f32 %f9, %f1, %f2, %f3;", 'f', {{2.0f, 3.0f, 4.0f, 10.0f}, {e, e, -(1 + 0x1p-11f), 0x1p-24f}});
  check("fma.rn.ftz.f32 %f9, %f1, %f2, %f3;", 'f', {{1e-40f, 3.0f, 0.0f, 0.0f}});
  check("fma.rn.sat.f32 %f9, %f1, %f2, %f3;", 'f', {{2.0f, 3.0f, 4.0f, 1.0f}});
  check("fma.rm.f32 %f9, %f1, %f2, %f3;", 'f',
        {{1.0f, 1.0f, 0x1p-30f, 1.0f}, {-1.0f, 1.0f, -0x1p-30f, -(1 + 0x1p-23f)}});
  check("fma.rp.f32 %f9, %f1, %f2, %f3;", 'f', {{1.0f, 1.0f, 0x1p-30f, 1 + 0x1p-23f}, {-1.0f, 1.0f, -0x1p-30f, -1.0f}});
  check("fma.rz.f32 %f9, %f1, %f2, %f3;", 'f',
        {{1.0f, 1.0f, -0x1p-30f, 1 - 0x1p-24f}, {-1.0f, 1.0f, -0x1p-30f, -1.0f}});
  check("neg.f32 %f9, %f1;", 'f', {{0.0f, 0, 0, -0.0f}, {1.0f, 0, 0, -1.0f}});
  check("abs.f32 %f9, %f1;", 'f', {{-2.0f, 0, 0, 2.0f}, {-inf, 0, 0, inf}});
  check("div.rn.f32 %f9, %f1, %f2;", 'f', {{1.0f, 3.0f, 0, 1.0f / 3.0f}, {1.0f, 0.0f, 0, inf}, {0.0f, 0.0f, 0, nan}});
  check("div.full.f32 %f9, %f1, %f2;", 'f', {{6.0f, 3.0f, 0, 2.0f}});
  check("div.approx.f32 %f9, %f1, %f2;", 'f', {{6.0f, 3.0f, 0, 2.0f}});
  check("rcp.rn.f32 %f9, %f1;", 'f', {{4.0f, 0, 0, 0.25f}, {0.0f, 0, 0, inf}});
  check("rcp.approx.ftz.f32 %f9, %f1;", 'f', {{4.0f, 0, 0, 0.25f}, {1e-40f, 0, 0, inf}});
  check("sqrt.rn.f32 %f9, %f1;", 'f', {{9.0f, 0, 0, 3.0f}, {-1.0f, 0, 0, nan}});
  check("sqrt.approx.f32 %f9, %f1;", 'f', {{9.0f, 0, 0, 3.0f}});
  check("rsqrt.approx.f32 %f9, %f1;", 'f', {{16.0f, 0, 0, 0.25f}, {0.0f, 0, 0, inf}, {-1.0f, 0, 0, nan}});
  check("ex2.approx.f32 %f9, %f1;", 'f',
        {{3.0f, 0, 0, 8.0f},
         {-1.0f, 0, 0, 0.5f},
         {0.0f, 0, 0, 1.0f},
         {-inf, 0, 0, 0.0f},
         {inf, 0, 0, inf},
         {128.0f, 0, 0, inf},
         {-149.0f, 0, 0, 0x1p-149f},
         {nan, 0, 0, nan}});
  check("ex2.approx.ftz.f32 %f9, %f1;", 'f', {{-140.0f, 0, 0, 0.0f}, {3.0f, 0, 0, 8.0f}});
  check("lg2.approx.f32 %f9, %f1;", 'f', {{8.0f, 0, 0, 3.0f}, {0.0f, 0, 0, -inf}, {-1.0f, 0, 0, nan}});
  check("sin.approx.f32 %f9, %f1;", 'f', {{0.0f, 0, 0, 0.0f}, {1.0f, 0, 0, std::sin(1.0f)}});
  check("cos.approx.f32 %f9, %f1;", 'f', {{0.0f, 0, 0, 1.0f}, {1.0f, 0, 0, std::cos(1.0f)}});
  check("tanh.approx.f32 %f9, %f1;", 'f', {{0.0f, 0, 0, 0.0f}, {inf, 0, 0, 1.0f}});
  check("add.f64 %fd9, %fd1, %fd2;", 'F', {{1.0, 0x1p-52, 0, 1 + 0x1p-52}});
  check("fma.rn.f64 %fd9, %fd1, %fd2, %fd3;", 'F', {{2.0, 3.0, 4.0, 10.0}});
  check("div.rn.f64 %fd9, %fd1, %fd2;", 'F', {{1.0, 3.0, 0, 1.0 / 3.0}});
  check("sqrt.rn.f64 %fd9, %fd1;", 'F', {{2.0, 0, 0, std::sqrt(2.0)}});
  check("rcp.rn.f64 %fd9, %fd1;", 'F', {{3.0, 0, 0, 1.0 / 3.0}});
  check("rcp.approx.ftz.f64 %fd9, %fd1;", 'F',
        {{4.0, 0, 0, 0.25}, {3.0, 0, 0, std::bit_cast<double>(uint64_t{0x3fd5555500000000})}});
  check("mul.f64 %fd9, %fd1, 0d4000000000000000;", 'F', {{1.5, 0, 0, 3.0}});
}

TEST(Instructions, ApproximationsAreAccurate) {
  for (int first = -4000; first < 4000; first += 320) {
    Lanes a{};
    for (int lane = 0; lane < 32; ++lane)
      a[static_cast<size_t>(lane)] = Bits(static_cast<float>(first + 10 * lane) / 32).bits;
    const Lanes result = run_snippet("ex2.approx.f32 %f9, %f1;", 'f', a);
    for (size_t lane = 0; lane < 32; ++lane) {
      const double exact = std::exp2(static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(a[lane]))));
      const double got = std::bit_cast<float>(static_cast<uint32_t>(result[lane]));
      if (exact < 0x1p128) EXPECT_NEAR(got, exact, exact * 0x1p-22 + 0x1p-149);
    }
  }
}

TEST(Instructions, Conversions) {
  check("cvt.u64.u32 %rd9, %r1;", 'd', {{-1, 0, 0, 0xffffffff}});
  check("cvt.s64.s32 %rd9, %r1;", 'd', {{0xffffffff, 0, 0, -1}});
  check("cvt.u32.u64 %r9, %rd1;", 'r', {{0x123456789abcdef0, 0, 0, 0x9abcdef0}});
  check("cvt.s32.s16 %r9, %rs1;", 'r', {{0x8000, 0, 0, -32768}});
  check("cvt.u32.u16 %r9, %rs1;", 'r', {{0x8000, 0, 0, 0x8000}});
  check("cvt.s32.s8 %r9, %r1;", 'r', {{0x1ff, 0, 0, -1}});
  check("cvt.u32.u8 %r9, %r1;", 'r', {{0x1ff, 0, 0, 255}});
  check("cvt.u16.u64 %rs9, %rd1;", 's', {{0x12345, 0, 0, 0x2345}});
  check("cvt.s64.s16 %rd9, %rs1;", 'd', {{0x8000, 0, 0, -32768}});
  check("cvt.sat.s8.s32 %r9, %r1;", 'r', {{300, 0, 0, 127}, {-300, 0, 0, -128}, {5, 0, 0, 5}});
  check("cvt.sat.u16.s32 %rs9, %r1;", 's', {{-1, 0, 0, 0}, {70000, 0, 0, 0xffff}});
  check("cvt.sat.s32.u32 %r9, %r1;", 'r', {{0xffffffff, 0, 0, max32}});
  check("cvt.rn.f32.s32 %f9, %r1;", 'f',
        {{-3, 0, 0, -3.0f}, {16777217, 0, 0, 16777216.0f}, {16777219, 0, 0, 16777220.0f}});
  check("cvt.rn.f32.u32 %f9, %r1;", 'f', {{0xffffffff, 0, 0, 4294967296.0f}});
  check("cvt.rn.f32.s64 %f9, %rd1;", 'f', {{-3, 0, 0, -3.0f}});
  check("cvt.rn.f32.u64 %f9, %rd1;", 'f', {{min64, 0, 0, 0x1p63f}});
  check("cvt.rn.f64.s32 %fd9, %r1;", 'F', {{-3, 0, 0, -3.0}});
  check("cvt.rn.f64.u64 %fd9, %rd1;", 'F', {{-1, 0, 0, 0x1p64}});
  check("cvt.rzi.s32.f32 %r9, %f1;", 'r',
        {{-2.7f, 0, 0, -2}, {2.7f, 0, 0, 2}, {3e9f, 0, 0, max32}, {-3e9f, 0, 0, min32}, {nan, 0, 0, 0}});
  check("cvt.rni.s32.f32 %r9, %f1;", 'r', {{2.5f, 0, 0, 2}, {3.5f, 0, 0, 4}, {-2.5f, 0, 0, -2}});
  check("cvt.rmi.s32.f32 %r9, %f1;", 'r', {{-2.1f, 0, 0, -3}, {2.9f, 0, 0, 2}});
  check("cvt.rpi.s32.f32 %r9, %f1;", 'r', {{-2.9f, 0, 0, -2}, {2.1f, 0, 0, 3}});
  check("cvt.rzi.u32.f32 %r9, %f1;", 'r', {{-2.7f, 0, 0, 0}, {4e9f, 0, 0, 4000000000}, {5e9f, 0, 0, 0xffffffff}});
  check("cvt.rzi.s64.f32 %rd9, %f1;", 'd',
        {{-3e9f, 0, 0, -3000000000}, {1e30f, 0, 0, int64_t{0x7fffffffffffffff}}, {nan, 0, 0, min64}});
  check("cvt.rzi.s32.f64 %r9, %fd1;", 'r', {{-2.7, 0, 0, -2}, {std::nan(""), 0, 0, min32}});
  check("cvt.rni.f32.f32 %f9, %f1;", 'f', {{2.5f, 0, 0, 2.0f}, {-0.3f, 0, 0, -0.0f}});
  check("cvt.rmi.f32.f32 %f9, %f1;", 'f', {{2.9f, 0, 0, 2.0f}, {-2.1f, 0, 0, -3.0f}});
  check("cvt.rpi.f32.f32 %f9, %f1;", 'f', {{2.1f, 0, 0, 3.0f}});
  check("cvt.rzi.f32.f32 %f9, %f1;", 'f', {{-2.9f, 0, 0, -2.0f}});
  check("cvt.sat.f32.f32 %f9, %f1;", 'f', {{2.0f, 0, 0, 1.0f}, {-1.0f, 0, 0, 0.0f}, {nan, 0, 0, 0.0f}});
  check("cvt.rn.f32.f64 %f9, %fd1;", 'f',
        {{1 + 0x1p-24, 0, 0, 1.0f}, {1 + 0x1.8p-23, 0, 0, 1 + 0x1p-22f}, {1e300, 0, 0, inf}});
  check("cvt.f64.f32 %fd9, %f1;", 'F', {{1.5f, 0, 0, 1.5}});
}

// bf16 has 8 bits of precision: 1 + 2^-8 and 1 + 3·2^-8 lie in the middle.
TEST(Instructions, Bfloat16) {
  const std::vector<Row> rows = {{1.0f, 0, 0, 0x3f80},
                                 {1 + 0x1p-8f, 0, 0, 0x3f80},
                                 {1 + 0x1p-8f + 0x1p-23f, 0, 0, 0x3f81},
                                 {1 + 0x3p-8f, 0, 0, 0x3f82},
                                 {-(1 + 0x3p-8f), 0, 0, 0xbf82},
                                 {inf, 0, 0, 0x7f80},
                                 {-inf, 0, 0, 0xff80},
                                 {nan, 0, 0, 0x7fff},
                                 {-nan, 0, 0, 0x7fff},
                                 {std::numeric_limits<float>::max(), 0, 0, 0x7f80},
                                 {0x1p-133f, 0, 0, 1},
                                 {0x1p-134f, 0, 0, 0},
                                 {-0.0f, 0, 0, 0x8000}};
  check("cvt.rn.bf16.f32 %rs9, %f1;", 's', rows);
  check("cvt.f32.bf16 %f9, %rs1;", 'f',
        {{0x3f81, 0, 0, 1 + 0x1p-7f}, {0xff80, 0, 0, -inf}, {0x7fff, 0, 0, nan}, {1, 0, 0, 0x1p-133f}});
  check("cvt.rn.bf16x2.f32 %r9, %f1, %f2;", 'r', {{1.0f, 2.0f, 0, 0x3f804000}, {nan, -1.0f, 0, 0x7fffbf80}});
}

TEST(Instructions, Comparisons) {
  const struct {
    const char* name;
    bool less, equal, greater;
  } orders[] = {{"eq", false, true, false}, {"ne", true, false, true},  {"lt", true, false, false},
                {"le", true, true, false},  {"gt", false, false, true}, {"ge", false, true, true}};
  for (const auto& [name, less, equal, greater] : orders) {
    const std::string op = name;
    const auto rows = [&](Bits low, Bits high) {
      return std::vector<Row>{{low, high, 0, less}, {low, low, 0, equal}, {high, low, 0, greater}};
    };
    check("setp." + op + ".s32 %p9, %r1, %r2;", 'p', rows(-1, 1));
    check("setp." + op + ".u32 %p9, %r1, %r2;", 'p', rows(1, -1));
    check("setp." + op + ".s64 %p9, %rd1, %rd2;", 'p', rows(min64, 1));
    check("setp." + op + ".u64 %p9, %rd1, %rd2;", 'p', rows(1, min64));
    check("setp." + op + ".s16 %p9, %rs1, %rs2;", 'p', rows(0xffff, 1));
    check("setp." + op + ".u16 %p9, %rs1, %rs2;", 'p', rows(1, 0xffff));
    check("setp." + op + ".f64 %p9, %fd1, %fd2;", 'p', rows(-1.0, 1.0));
    for (const bool unordered : {false, true}) {
      std::vector<Row> floats = rows(-1.0f, 1.0f);
      floats.push_back({nan, 1.0f, 0, unordered});
      floats.push_back({1.0f, nan, 0, unordered});
      floats.push_back({0.0f, -0.0f, 0, equal});
      check("setp." + op + (unordered ? "u" : "") + ".f32 %p9, %f1, %f2;", 'p', floats);
    }
  }
  check("setp.lo.u32 %p9, %r1, %r2;", 'p', {{1, -1, 0, 1}});
  check("setp.ls.u32 %p9, %r1, %r2;", 'p', {{1, 1, 0, 1}});
  check("setp.hi.u32 %p9, %r1, %r2;", 'p', {{-1, 1, 0, 1}});
  check("setp.hs.u32 %p9, %r1, %r2;", 'p', {{1, 2, 0, 0}});
  check("setp.num.f32 %p9, %f1, %f2;", 'p', {{1.0f, nan, 0, 0}, {1.0f, 1.0f, 0, 1}});
  check("setp.nan.f32 %p9, %f1, %f2;", 'p', {{1.0f, nan, 0, 1}, {1.0f, 1.0f, 0, 0}});
}

TEST(Instructions, CombinedComparisons) {
  const std::string third = "setp.ne.s32 %p1, %r3, 0;";
  const auto table = [](int tt, int tf, int ft, int ff) {  // (1 < 2, c), (1 < 2, not c), …
    return std::vector<Row>{{1, 2, 1, tt}, {1, 2, 0, tf}, {2, 1, 1, ft}, {2, 1, 0, ff}};
  };
  check(third + "setp.lt.and.s32 %p9, %r1, %r2, %p1;", 'p', table(1, 0, 0, 0));
  check(third + "setp.lt.or.s32 %p9, %r1, %r2, %p1;", 'p', table(1, 1, 1, 0));
  check(third + "setp.lt.xor.s32 %p9, %r1, %r2, %p1;", 'p', table(0, 1, 1, 0));
  check(third + "setp.lt.and.s32 %p9, %r1, %r2, !%p1;", 'p', table(0, 1, 0, 0));
  check(third + "setp.lt.and.s32 %p8|%p9, %r1, %r2, %p1;", 'p', table(0, 0, 1, 0));
  check("setp.lt.s32 %p9|%p8, %r1, %r2;", 'p', table(1, 1, 0, 0));
  check("setp.lt.s32 %p8|%p9, %r1, %r2;", 'p', table(0, 0, 1, 1));
  check(third + "setp.lt.s32 %p2, %r1, %r2; and.pred %p9, %p2, %p1;", 'p', table(1, 0, 0, 0));
  check(third + "setp.lt.s32 %p2, %r1, %r2; xor.pred %p9, %p2, %p1;", 'p', table(0, 1, 1, 0));
  check(third + "not.pred %p9, %p1;", 'p', table(0, 1, 0, 1));
  check("mov.pred %p9, 1;", 'p', table(1, 1, 1, 1));
  check("mov.pred %p9, 0;", 'p', table(0, 0, 0, 0));
}

TEST(Instructions, MovesAndSelections) {
  const std::string third = "setp.ne.s32 %p1, %r3, 0;";
  check(third + "selp.b32 %r9, %r1, %r2, %p1;", 'r', {{1, 2, 1, 1}, {1, 2, 0, 2}});
  check(third + "selp.f32 %f9, %f1, 0f40000000, %p1;", 'f', {{1.0f, 0, 1, 1.0f}, {1.0f, 0, 0, 2.0f}});
  check(third + "selp.b64 %rd9, %rd1, -7, %p1;", 'd', {{1, 0, 1, 1}, {1, 0, 0, -7}});
  check(third + "selp.u16 %rs9, %rs1, %rs2, %p1;", 's', {{1, 2, 1, 1}, {1, 2, 0, 2}});
  check("mov.b64 {%r4, %r9}, %rd1;", 'r', {{0x123456789abcdef0, 0, 0, 0x12345678}});
  check("mov.b64 {%r9, _}, %rd1;", 'r', {{0x123456789abcdef0, 0, 0, 0x9abcdef0}});
  check("mov.b64 %rd9, {%r1, %r2};", 'd', {{1, 2, 0, 0x200000001}});
  check("mov.b32 {%rs4, %rs9}, %r1;", 's', {{0x12345678, 0, 0, 0x1234}});
  check("mov.b64 %rd9, {%rs1, %rs2, %rs3, %rs1};", 'd', {{1, 2, 3, 0x0001000300020001}});
  check("mov.u32 %r9, WARP_SZ;", 'r', {{0, 0, 0, 32}});
  check("mov.f32 %f9, 0fBF800000;", 'f', {{0, 0, 0, -1.0f}});
  check("mov.u64 %rd9, 0x123456789abcdef0;", 'd', {{0, 0, 0, 0x123456789abcdef0}});
}

TEST(Instructions, SpecialRegisters) {
  const struct {
    const char* name;
    uint32_t (*of)(uint32_t lane);
  } registers[] = {{"%tid.x", [](uint32_t l) { return l; }},
                   {"%tid.y", [](uint32_t) { return 0u; }},
                   {"%ntid.x", [](uint32_t) { return 32u; }},
                   {"%ctaid.x", [](uint32_t) { return 0u; }},
                   {"%nctaid.z", [](uint32_t) { return 1u; }},
                   {"%laneid", [](uint32_t l) { return l; }},
                   {"%warpid", [](uint32_t) { return 0u; }},
                   {"%lanemask_lt", [](uint32_t l) { return (1u << l) - 1; }},
                   {"%lanemask_le", [](uint32_t l) { return (2u << l) - 1; }},
                   {"%lanemask_eq", [](uint32_t l) { return 1u << l; }},
                   {"%lanemask_ge", [](uint32_t l) { return ~((1u << l) - 1); }},
                   {"%lanemask_gt", [](uint32_t l) { return ~((2u << l) - 1); }}};
  for (const auto& [name, of] : registers) {
    const Lanes result = run_snippet(std::string("mov.u32 %r9, ") + name + ";", 'r');
    for (uint32_t lane = 0; lane < 32; ++lane) EXPECT_EQ(result[lane], of(lane)) << name << " " << lane;
  }
}

TEST(Instructions, Refused) {
  for (const char* instruction :
       {"frobnicate.u32 %r9, %r1;",
        "add.cc.u32 %r9, %r1, %r2;",
        "add.sat.s32 %r9, %r1, %r2;",
        "addc.u32 %r9, %r1, %r2;",
        "mad.lo.cc.u32 %r9, %r1, %r2, %r3;",
        "mul.u32 %r9, %r1, %r2;",
        "add.rz.f32 %f9, %f1, %f2;",
        "min.NaN.f32 %f9, %f1, %f2;",
        "max.xorsign.abs.f32 %f9, %f1, %f2;",
        "add.bf16 %rs9, %rs1, %rs2;",
        "fma.rn.bf16x2 %r9, %r1, %r2, %r3;",
        "fma.rn.relu.f32 %f9, %f1, %f2, %f3;",
        "ex2.approx.f16 %rs9, %rs1;",
        "prmt.b32.f4e %r9, %r1, %r2, %r3;",
        "shf.l.b32 %r9, %r1, %r2, %r3;",
        "shf.l.wrap.b64 %rd9, %rd1, %rd2, %r3;",
        "lop3.and.b32 %r9, %r1, %r2, %r3, 128, %p1;",
        "bfi.u32 %r9, %r1, %r2, %r3, %r4;",
        "cvt.rz.f32.f64 %f9, %fd1;",
        "cvt.rn.relu.bf16x2.f32 %r9, %f1, %f2;",
        "cvt.rn.f16.f32 %rs9, %f1;",
        "cvt.s32.f32 %r9, %f1;",
        "cvt.rzi.ftz.s32.f32 %r9, %f1;",
        "setp.lt.ftz.f32 %p9, %f1, %f2;",
        "setp.ltu.s32 %p9, %r1, %r2;",
        "setp.lo.s32 %p9, %r1, %r2;",
        "setp.foo.s32 %p9, %r1, %r2;",
        "slct.s32.s32 %r9, %r1, %r2, %r3;",
        "ld.global.v8.f32 {%f1,%f2,%f3,%f4,%f5,%f6,%f7,%f8}, [%rd8];",
        "ld.global.b128 %rd9, [%rd8];",
        "ld.global.nc.L2::cache_hint.f32 %f9, [%rd8], %rd1;",
        "ld.shared::cluster.u32 %r9, [%r1];",
        "ld.global.mmio.u32 %r9, [%rd8];",
        "atom.global.add.f32 %f9, [%rd8], %f1;",
        "red.global.add.f32 [%rd8], %f1;",
        "atom.global.cas.b16 %rs9, [%rd8], %rs1, %rs2;",
        "atom.global.cas.b128 %rd9, [%rd8], %rd1, %rd2;",
        "atom.global.nand.b32 %r9, [%rd8], %r1;",
        "bar.arrive 0, 64;",
        "bar.sync 0, 64;",
        "bar.sync %r1;",
        "bar.red.popc.u32 %r9, 0, %p1;",
        "barrier.cluster.arrive;",
        "shfl.sync.idx.b64 %rd9, %rd1, 0, 31, -1;",
        "shfl.idx.b32 %r9, %r1, 0, 31;",
        "vote.all.pred %p9, %p1;",
        "vote.sync.ballot.pred %r9, %p1, -1;",
        "match.any.sync.b32 %r9, %r1, -1;",
        "redux.sync.min.f32 %f9, %f1, -1;",
        "redux.sync.add.b32 %r9, %r1, -1;",
        "redux.sync.and.u32 %r9, %r1, -1;",
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2}, {%r3}, {%f1,%f2,%f3,%f4};",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4}, {%r5,%r6}, "
        "{%f1,%f2,%f3,%f4};",
        "ldmatrix.sync.aligned.m8n16.x1.shared.b8x16.b6x16_p32 {%r1}, [%r2];",
        "ldmatrix.sync.aligned.m8n8.x1.b16 {%r1}, [%rd2];",
        "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r1], {%r2};",
        "cp.async.ca.shared.global [%r1], [%rd8], 16, %p1;",
        "cp.async.cg.shared.global [%r1], [%rd8], 8;",
        "cp.async.ca.shared.global.L2::cache_hint [%r1], [%rd8], 16, %rd2;",
        "cp.async.bulk.commit_group;",
        "cp.async.mbarrier.arrive.noinc.b64 [%rd8];",
        "mov.u64 %rd9, %clock64;",
        "mov.u32 %r9, %smid;",
        "mov.b128 %rd9, {%rd1, %rd2};",
        "fence.proxy.async;",
        "dp4a.u32.u32 %r9, %r1, %r2, %r3;",
        "bmsk.clamp.b32 %r9, %r1, %r2;",
        "elect.sync %r9|%p1, -1;",
        "tex.1d.v4.f32.s32 {%f1,%f2,%f3,%f4}, [%rd1, {%r1}];",
        "call foo;",
        "and.pred %p9, %p1, !%p2;",
        "brx.idx %r1, table;",
        "mov.u32 %r9, 1.5;",
        "mov.u32 %r9, 0b101;",
        "add.u32 %r9, %r1;",
        "add.u32 %r9, %r1, %r2, %r3;"})
    refuses(instruction);
}

}  // namespace
}  // namespace softgpu
