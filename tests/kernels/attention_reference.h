// Attention as plain loops over a layout of segments, what the op may err, and the buffers of a call for the same
// inputs.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "kernels/attention.h"

namespace notellm::test {

struct Layout {
  std::vector<AttentionSegment> segments;
  std::vector<int32_t> query_tokens;
  int64_t tokens = 0;

  // A segment of `own` tokens behind those of before, whose last `queries` tokens are queries.
  Layout& add(int own, int queries, int prefix_begin = 0, int prefix_end = 0) {
    const int begin = static_cast<int>(tokens), first = static_cast<int>(query_tokens.size());
    tokens += own;
    for (int i = own - queries; i < own; ++i) query_tokens.push_back(begin + i);
    segments.push_back({begin, begin + own, prefix_begin, prefix_end, first, first + queries});
    return *this;
  }
  int64_t queries() const { return static_cast<int64_t>(query_tokens.size()); }
};

struct Heads {
  int64_t heads, kv_heads, head_dim;
};

// Everything in double, and for Real = float what a plain f32 loop gives.
template <class Real>
struct Reference {
  Layout layout;
  Heads h;
  std::vector<Real> q, kv, d_o, o, lse, dq, dkv;

  Reference(const Layout& layout, const Heads& h)
      : layout(layout),
        h(h),
        q(layout.queries() * h.heads * h.head_dim),
        kv(layout.tokens * 2 * h.kv_heads * h.head_dim),
        d_o(q.size()),
        o(q.size()),
        lse(layout.queries() * h.heads),
        dq(q.size()),
        dkv(kv.size()) {}

  size_t query_at(int64_t i, int64_t head) const { return (i * h.heads + head) * h.head_dim; }
  size_t key_at(int64_t token, int64_t head) const {
    return (token * 2 * h.kv_heads + head / (h.heads / h.kv_heads)) * h.head_dim;
  }
  size_t value_at(int64_t token, int64_t head) const { return key_at(token, head) + h.kv_heads * h.head_dim; }
  Real scale() const { return 1 / std::sqrt(static_cast<Real>(h.head_dim)); }
  Real dot(const std::vector<Real>& a, size_t at_a, const std::vector<Real>& b, size_t at_b) const {
    Real sum = 0;
    for (int64_t c = 0; c < h.head_dim; ++c) sum += a[at_a + c] * b[at_b + c];
    return sum;
  }

  void for_each_row(const std::function<void(int64_t query, int64_t head, const std::vector<int64_t>& keys)>& f) {
    for (const AttentionSegment& s : layout.segments)
      for (int64_t i = s.query_begin; i < s.query_end; ++i) {
        std::vector<int64_t> keys;
        for (int64_t j = s.prefix_begin; j < s.prefix_end; ++j) keys.push_back(j);
        for (int64_t j = s.begin; j <= layout.query_tokens[i]; ++j) keys.push_back(j);
        for (int64_t head = 0; head < h.heads; ++head) f(i, head, keys);
      }
  }

  void forward() {
    for_each_row([&](int64_t i, int64_t head, const std::vector<int64_t>& keys) {
      std::vector<Real> score;
      for (int64_t j : keys) score.push_back(scale() * dot(q, query_at(i, head), kv, key_at(j, head)));
      const Real max = *std::max_element(score.begin(), score.end());
      Real sum = 0;
      for (Real s : score) sum += std::exp(s - max);
      lse[i * h.heads + head] = max + std::log(sum);
      for (int64_t c = 0; c < h.head_dim; ++c) {
        Real value = 0;
        for (size_t n = 0; n < keys.size(); ++n) value += std::exp(score[n] - max) * kv[value_at(keys[n], head) + c];
        o[query_at(i, head) + c] = value / sum;
      }
    });
  }

  void backward() {
    for_each_row([&](int64_t i, int64_t head, const std::vector<int64_t>& keys) {
      const size_t at = query_at(i, head);
      const Real d = dot(d_o, at, o, at);
      for (int64_t j : keys) {
        const size_t key = key_at(j, head), value = value_at(j, head);
        const Real p = std::exp(scale() * dot(q, at, kv, key) - lse[i * h.heads + head]);
        const Real ds = p * (dot(d_o, at, kv, value) - d);
        for (int64_t c = 0; c < h.head_dim; ++c) {
          dq[at + c] += scale() * ds * kv[key + c];
          dkv[key + c] += scale() * ds * q[at + c];
          dkv[value + c] += p * d_o[at + c];
        }
      }
    });
  }
};

template <class To, class From>
std::vector<To> converted(const std::vector<From>& from) {
  std::vector<To> to;
  for (From x : from) to.push_back(To(static_cast<float>(x)));
  return to;
}

// The loop in f32 for inputs that T holds, its results rounded to T.
template <class T>
Reference<float> plain_loop(const Reference<double>& in) {
  Reference<float> plain(in.layout, in.h);
  plain.q = converted<float>(in.q);
  plain.kv = converted<float>(in.kv);
  plain.d_o = converted<float>(in.d_o);
  plain.forward();
  plain.o = converted<float>(converted<T>(plain.o));
  plain.backward();
  plain.dq = converted<float>(converted<T>(plain.dq));
  plain.dkv = converted<float>(converted<T>(plain.dkv));
  return plain;
}

inline float bf16_rounded(float x) { return static_cast<float>(bf16(x)); }

// A plain f32 loop that rounds where tensor cores need bf16: P, against the row's maximum, and dS; and its results.
inline Reference<float> plain_bf16_loop(const Reference<double>& in) {
  Reference<float> x(in.layout, in.h);
  x.q = converted<float>(in.q);
  x.kv = converted<float>(in.kv);
  x.d_o = converted<float>(in.d_o);
  x.for_each_row([&](int64_t i, int64_t head, const std::vector<int64_t>& keys) {
    std::vector<float> score;
    for (int64_t j : keys) score.push_back(x.scale() * x.dot(x.q, x.query_at(i, head), x.kv, x.key_at(j, head)));
    const float max = *std::max_element(score.begin(), score.end());
    float sum = 0;
    for (float s : score) sum += std::exp(s - max);
    x.lse[i * in.h.heads + head] = max + std::log(sum);
    for (int64_t c = 0; c < in.h.head_dim; ++c) {
      float value = 0;
      for (size_t n = 0; n < keys.size(); ++n)
        value += bf16_rounded(std::exp(score[n] - max)) * x.kv[x.value_at(keys[n], head) + c];
      x.o[x.query_at(i, head) + c] = bf16_rounded(value / sum);
    }
  });
  x.for_each_row([&](int64_t i, int64_t head, const std::vector<int64_t>& keys) {
    const size_t at = x.query_at(i, head);
    const float d = x.dot(x.d_o, at, x.o, at);
    for (int64_t j : keys) {
      const size_t key = x.key_at(j, head), value = x.value_at(j, head);
      const float p = std::exp(x.scale() * x.dot(x.q, at, x.kv, key) - x.lse[i * in.h.heads + head]);
      const float ds = bf16_rounded(p * (x.dot(x.d_o, at, x.kv, value) - d));
      for (int64_t c = 0; c < in.h.head_dim; ++c) {
        x.dq[at + c] += x.scale() * ds * x.kv[key + c];
        x.dkv[key + c] += x.scale() * ds * x.q[at + c];
        x.dkv[value + c] += bf16_rounded(p) * x.d_o[at + c];
      }
    }
  });
  x.dq = converted<float>(converted<bf16>(x.dq));
  x.dkv = converted<float>(converted<bf16>(x.dkv));
  return x;
}

template <class A>
double max_error(const std::vector<A>& values, const std::vector<double>& expected) {
  double error = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double difference = std::abs(static_cast<double>(static_cast<float>(values[i])) - expected[i]);
    error = difference <= error ? error : difference;  // NaN wins, and stays
    if (std::isnan(difference)) return difference;
  }
  return error;
}
inline double max_abs(const std::vector<double>& v) {
  double max = 0;
  for (double x : v) max = std::max(max, std::abs(x));
  return max;
}

// Inputs that T holds exactly, standard normal.
template <class T>
Reference<double> random_reference(const Layout& layout, const Heads& h, unsigned seed) {
  Reference<double> reference(layout, h);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (auto* v : {&reference.q, &reference.kv, &reference.d_o})
    for (double& x : *v) x = static_cast<float>(T(normal(random)));
  return reference;
}

constexpr double f32_unit = 0x1p-24;

// What the op may err in f32: twice as much as a plain f32 loop; and, where that happens to err little, as much as two
// orders of a sum of head_dim products may differ.
struct Tolerance {
  double lse, o, dq, dkv;
  explicit Tolerance(const Reference<double>& exact) {
    const Reference<float> plain = plain_loop<float>(exact);
    const double q = max_abs(exact.q), kv = max_abs(exact.kv), d_o = max_abs(exact.d_o);
    const double n = static_cast<double>(exact.h.head_dim), unit = n * f32_unit / std::sqrt(n);
    lse = 2 * max_error(plain.lse, exact.lse) + unit * q * kv;
    o = 2 * max_error(plain.o, exact.o) + f32_unit * kv;
    dq = 2 * max_error(plain.dq, exact.dq) + unit * d_o * kv * kv;
    dkv = 2 * max_error(plain.dkv, exact.dkv) + unit * d_o * kv * q;
  }
};

// Two prefixes (one with queries, one without), segments that use them or none, subsets of queries, sizes around tiles
// and blocks, one token, no token, no query.
inline Layout ragged() {
  Layout layout;
  layout.add(25, 25).add(37, 0);
  layout.add(1, 1, 0, 25).add(90, 90, 0, 25).add(16, 3, 25, 62).add(0, 0, 0, 25).add(17, 17).add(5, 0, 0, 25);
  layout.add(131, 131, 25, 62).add(64, 64).add(1, 1).add(40, 6, 0, 25).add(9, 9, 3, 3);
  return layout;
}

// The op's own buffers. All results start as NaN: what is not written is seen.
template <class T>
struct Op {
  Layout layout;
  Heads h;
  std::vector<T> q, kv, d_o, o, dq, dkv;
  Stream stream;
  std::vector<float> lse, workspace;

  explicit Op(const Reference<double>& from)
      : layout(from.layout),
        h(from.h),
        q(converted<T>(from.q)),
        kv(converted<T>(from.kv)),
        d_o(converted<T>(from.d_o)),
        o(q.size(), T(NAN)),
        dq(q.size(), T(NAN)),
        dkv(kv.size(), T(NAN)),
        lse(from.lse.size(), NAN),
        workspace(attention_workspace(stream, plan(), query_tensor(q), key_tensor(kv)), NAN) {}

  Tensor query_tensor(std::vector<T>& v) { return Tensor::of(v.data(), {layout.queries(), h.heads, h.head_dim}); }
  Tensor key_tensor(std::vector<T>& v) { return Tensor::of(v.data(), {layout.tokens, 2 * h.kv_heads, h.head_dim}); }
  AttentionPlan plan() const { return AttentionPlan(layout.segments, layout.query_tokens, layout.tokens); }
  Tensor lse_tensor() { return Tensor::of(lse.data(), {layout.queries(), h.heads}); }
  Tensor workspace_tensor() { return Tensor::of(workspace.data(), {static_cast<int64_t>(workspace.size())}); }

  Op& forward() {
    attention(stream, plan(), query_tensor(q), key_tensor(kv), query_tensor(o), lse_tensor());
    return *this;
  }
  Op& backward() {
    attention_backward(stream, plan(), query_tensor(d_o), query_tensor(q), key_tensor(kv), query_tensor(o),
                       lse_tensor(), query_tensor(dq), key_tensor(dkv), workspace_tensor());
    return *this;
  }
};

}  // namespace notellm::test
