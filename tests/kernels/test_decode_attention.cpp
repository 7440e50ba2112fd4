#include "kernels/decode_attention.h"
#include "tests/kernels/decode_cases.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

using test::view;

Stream stream;

template <class T>
std::string run(const test::DecodeCase<T>& c) {
  std::vector<T> o(c.q.size()), cache = c.cache;
  const auto of = [](const std::vector<T>& v, std::initializer_list<int64_t> sizes) {
    return Tensor::of(v.data(), sizes);
  };
  decode_attention(stream, of(c.q, {c.queries(), c.heads, c.head_dim}),
                   of(c.kv, {c.queries(), 2 * c.kv_heads, c.head_dim}), of(cache, {c.rows, 2 * c.kv_heads, c.head_dim}),
                   Tensor::of(c.runs.data(), {c.queries(), 3, 2}), Tensor::of(c.place.data(), {c.queries()}),
                   of(o, {c.queries(), c.heads, c.head_dim}));
  c.expect_attention(o);
  c.expect_cache(cache);
  return test::bytes_of(o, cache);
}

TEST(DecodeAttention, ByHand) {
  // One head of two elements; keys (0, 0) and, new, (√2·log 3, 0): weights 1/4 and 3/4.
  std::vector<float> q{1, 5}, kv{std::sqrt(2.0f) * std::log(3.0f), 0, 8, 4}, cache{9, 9, 9, 9, 0, 0, 4, 0}, o(2);
  std::vector<int32_t> runs{1, 2}, place{0};
  decode_attention(stream, view(q, {1, 1, 2}), view(kv, {1, 2, 2}), view(cache, {2, 2, 2}), view(runs, {1, 1, 2}),
                   view(place, {1}), view(o, {1, 1, 2}));
  EXPECT_NEAR(o[0], 7, 1e-6);
  EXPECT_NEAR(o[1], 3, 1e-6);
  EXPECT_EQ(cache, (std::vector<float>{kv[0], 0, 8, 4, 0, 0, 4, 0}));
}

template <class T>
void against_double() {
  for (const test::DecodeCase<T>& c : test::decode_cases<T>()) {
    SCOPED_TRACE(c.name());
    test::expect_same_bits([&] { return run(c); });
  }
}
TEST(DecodeAttention, AgainstDouble) {
  against_double<float>();
  against_double<bf16>();
}

// Scores far from 0, where e^score alone is 0 or infinite.
TEST(DecodeAttention, FarFromZero) {
  test::DecodeCase<float> c(2, 1, 8, {40});
  for (float& x : c.q) x *= 60;
  run(c);
}

// A query's bits are its own, whatever stands beside it.
TEST(DecodeAttention, QueriesAreIndependent) {
  const test::DecodeCase<float> all(4, 2, 12, {30, 5, 18});
  std::vector<float> o(all.q.size()), cache = all.cache;
  const auto compute = [&](int64_t first, int64_t n) {
    decode_attention(stream, view(o, {3, 4, 12}).slice(first, first + n),
                     Tensor::of(all.kv.data(), {3, 4, 12}).slice(first, first + n), view(cache, {all.rows, 4, 12}),
                     Tensor::of(all.runs.data(), {3, 3, 2}).slice(first, first + n),
                     Tensor::of(all.place.data(), {3}).slice(first, first + n),
                     view(o, {3, 4, 12}).slice(first, first + n));
  };
  o = all.q;  // o may be q
  compute(0, 3);
  const std::vector<float> together = o;
  o = all.q;
  for (int64_t i = 0; i < 3; ++i) compute(i, 1);
  EXPECT_EQ(o, together);
}

TEST(DecodeAttention, Errors) {
  std::vector<float> q(8), kv(8), cache(24), o(8);
  std::vector<int32_t> runs{0, 1, 1, 3}, down{0, 1, 3, 1}, outside{0, 1, 1, 7}, place{4, 5}, below{4, -1};
  const Tensor x = view(q, {2, 2, 2}), y = view(kv, {2, 2, 2}), c = view(cache, {6, 2, 2}), r = view(runs, {2, 1, 2}),
               p = view(place, {2}), z = view(o, {2, 2, 2});
  EXPECT_ERROR(internal, "2 heads of 2 over 0", decode_attention(stream, x, view(kv, {2, 1, 4}), c, r, p, z));
  EXPECT_ERROR(internal, "3 heads of 1 over 2",
               decode_attention(stream, Tensor::of(q.data(), {1, 3, 1}), view(kv, {2, 4, 1}), c, r, p, z));
  EXPECT_ERROR(internal, "kv is", decode_attention(stream, x, y.slice(0, 1), c, r, p, z));
  EXPECT_ERROR(internal, "cache is", decode_attention(stream, x, y, view(cache, {4, 2, 3}), r, p, z));
  EXPECT_ERROR(internal, "runs is", decode_attention(stream, x, y, c, view(runs, {1, 2, 2}), p, z));
  EXPECT_ERROR(internal, "place is", decode_attention(stream, x, y, c, r, p.slice(0, 1), z));
  EXPECT_ERROR(internal, "o is", decode_attention(stream, x, y, c, r, p, z.slice(0, 1)));
  EXPECT_ERROR(internal, "rows 3 to 1 of a cache of 6", decode_attention(stream, x, y, c, view(down, {2, 1, 2}), p, z));
  EXPECT_ERROR(internal, "rows 1 to 7 of a cache of 6",
               decode_attention(stream, x, y, c, view(outside, {2, 1, 2}), p, z));
  EXPECT_ERROR(internal, "row -1 of a cache of 6", decode_attention(stream, x, y, c, r, view(below, {2}), z));
}

}  // namespace
}  // namespace notellm
