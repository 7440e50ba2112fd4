#include "kernels/decode_attention.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/checks.h"
#include "kernels/small_gemm.h"

// A thread takes some kv heads of a query and goes over the sequence's rows once, a block of vector_lanes rows at a
// time, whose scores are one vector for each head; the softmax is online (Milakov and Gimelshein 2018, arXiv
// 1805.02867).
namespace notellm {
namespace {

void expect_rows(Tensor cache, Tensor runs, Tensor place) {
  const auto rows = static_cast<int32_t>(cache.rows());
  const int32_t* run = runs.as<int32_t>();
  for (int64_t r = 0; r < runs.size() / 2; ++r)
    NOTELLM_CHECK(0 <= run[2 * r] && run[2 * r] <= run[2 * r + 1] && run[2 * r + 1] <= rows,
                  "rows {} to {} of a cache of {}", run[2 * r], run[2 * r + 1], rows);
  for (const int32_t at : place.span<int32_t>())
    NOTELLM_CHECK(0 <= at && at < rows, "row {} of a cache of {}", at, rows);
}

// What all threads know.
template <class T>
struct Problem {
  const T *q, *kv;
  T *cache, *o;
  const int32_t *runs, *place;
  int64_t queries, run_count, heads, kv_heads, head_dim;

  int64_t row_size() const { return 2 * kv_heads * head_dim; }
  int64_t group() const { return heads / kv_heads; }
  int64_t pieces() const { return (head_dim + vector_lanes - 1) / vector_lanes; }  // vectors that hold a head
};

// The work of one query and some kv heads. whole: a head is so many whole vectors; 0: it is of any size.
template <class T, int whole>
class Decoding {
 public:
  Decoding(const Problem<T>& p, int64_t query, int64_t first, int64_t last)
      : p_(p), query_(query), first_(first), last_(last) {
    const int64_t heads = head_count();
    std::vector<vfloat>& memory = scratch();
    memory.resize(std::max<size_t>(memory.size(), static_cast<size_t>(heads * (2 * pieces() + vector_lanes + 2))));
    q_ = memory.data();
    sums_ = q_ + heads * pieces();
    products_ = sums_ + heads * pieces();
    most_ = reinterpret_cast<float*>(products_ + heads * vector_lanes);
    weight_ = most_ + heads;
    std::fill_n(sums_, heads * pieces(), vfloat{});
    std::fill_n(most_, heads, -std::numeric_limits<float>::infinity());
    std::fill_n(weight_, heads, 0.0f);
    const float scale = 1 / std::sqrt(static_cast<float>(p.head_dim));
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t c = 0; c < pieces(); ++c)
        q_[h * pieces() + c] = piece(p.q + (query * p.heads + first * p.group() + h) * p.head_dim, c) * scale;
  }

  void run() {
    keep_new_row();
    const int64_t count = find_rows();
    for (begin_ = 0; begin_ < count; begin_ += vector_lanes) {
      count_ = static_cast<int>(std::min<int64_t>(vector_lanes, count - begin_));
      take_block();
    }
    finish();
  }

 private:
  static std::vector<vfloat>& scratch() {
    thread_local std::vector<vfloat> memory;
    return memory;
  }
  static std::vector<const T*>& rows_of_thread() {
    thread_local std::vector<const T*> memory;
    return memory;
  }
  int64_t head_count() const { return (last_ - first_) * p_.group(); }
  int64_t pieces() const { return whole > 0 ? whole : p_.pieces(); }
  vfloat piece(const T* head, int64_t c) const {
    if constexpr (whole > 0) return vload(head + c * vector_lanes);
    return vload(head + c * vector_lanes, p_.head_dim - c * vector_lanes);
  }

  void keep_new_row() {
    const T* from = p_.kv + query_ * p_.row_size();
    T* to = p_.cache + p_.place[query_] * p_.row_size();
    for (int64_t part = 0; part < 2; ++part) {
      const int64_t begin = (part * p_.kv_heads + first_) * p_.head_dim;
      std::copy_n(from + begin, (last_ - first_) * p_.head_dim, to + begin);
    }
  }

  // How many there are. Behind them stands the last one again, for lanes without a row, and from the next block on what
  // is to be read ahead: the next query's first ones.
  int64_t find_rows() {
    rows_.clear();
    append_rows(query_, std::numeric_limits<int64_t>::max());
    const auto count = std::ssize(rows_), whole_blocks = (count + vector_lanes - 1) / vector_lanes * vector_lanes;
    rows_.resize(static_cast<size_t>(whole_blocks), rows_.back());
    if (query_ + 1 < p_.queries) append_rows(query_ + 1, whole_blocks + vector_lanes);
    rows_.resize(static_cast<size_t>(whole_blocks + vector_lanes), rows_.back());
    return count;
  }

  // A query's rows, until there are `most`.
  void append_rows(int64_t query, int64_t most) {
    for (int64_t r = 0; r < p_.run_count; ++r) {
      const int32_t* run = p_.runs + (query * p_.run_count + r) * 2;
      for (int32_t row = run[0]; row < run[1] && std::ssize(rows_) < most; ++row)
        rows_.push_back(p_.cache + row * p_.row_size());
    }
    if (std::ssize(rows_) < most) rows_.push_back(p_.cache + p_.place[query] * p_.row_size());
  }

  // A block's keys, then its values, each row in whole, in the order in which they lie in memory: head by head that
  // came to 11 of the memory's 28 GB/s, because a head's parts of rows lie too far apart for the CPU to guess.
  void take_block() {
    for (int r = 0; r < vector_lanes; ++r) {
      read_ahead(r);
      multiply_keys(r);
    }
    for (int64_t h = 0; h < head_count(); ++h) find_weights(h);
    for (int r = 0; r < vector_lanes; ++r) {
      read_ahead(vector_lanes + r);
      if (r < count_) add_values(r);
    }
  }

  // Asks for the next block, into the second cache, since the first holds one: in 2 · vector_lanes steps, of which
  // `step` is one, in the order in which it lies in memory. A core has few lines under way at a time and waits where
  // more are asked for at once; and after keys alone the CPU guesses the values beside them, which leaves nothing to
  // fetch while values are added (3 to 8 % slower).
  [[gnu::always_inline]] void read_ahead(int step) const {
    const int64_t bytes = (last_ - first_) * p_.head_dim * static_cast<int64_t>(sizeof(T));
    const T* row = rows_[begin_ + vector_lanes + step / 2];
    prefetch<2>(row + (step % 2 * p_.kv_heads + first_) * p_.head_dim, bytes);
  }

  // products[h, r] = q[h] · key[r], still a vector of sums
  void multiply_keys(int r) {
    const T* key = rows_[begin_ + r] + first_ * p_.head_dim;
    for (int64_t h = 0; h < head_count(); key += p_.head_dim)
      for (const int64_t end = h + p_.group(); h < end; ++h) {
        const vfloat* q = q_ + h * pieces();
        vfloat sum = q[0] * piece(key, 0);
        for (int64_t c = 1; c < pieces(); ++c) sum += q[c] * piece(key, c);
        products_[h * vector_lanes + r] = sum;
      }
  }

  // The online softmax: the weights of the block's rows, −inf for lanes without one; and the sums so far to their
  // scale.
  void find_weights(int64_t h) {
    static constexpr LaneIndices zero_up = lane_indices([](int i) { return i; });
    vfloat* products = products_ + h * vector_lanes;
    const vfloat all = sum_rows(*reinterpret_cast<vfloat(*)[vector_lanes]>(products));
    const vfloat scores = zero_up.load() < count_ ? all : vbroadcast(-std::numeric_limits<float>::infinity());
    const float most = std::max(most_[h], lane_max(scores)), before = exp_or_zero(most_[h] - most);
    const vfloat p = exp_or_zero(scores - most);
    most_[h] = most;
    weight_[h] = weight_[h] * before + lane_sum(p);
    products[0] = p;
    for (int64_t c = 0; c < pieces(); ++c) sums_[h * pieces() + c] *= before;
  }

  // sums[h] += weight of row r · value[r]
  void add_values(int r) {
    const T* value = rows_[begin_ + r] + (p_.kv_heads + first_) * p_.head_dim;
    for (int64_t h = 0; h < head_count(); value += p_.head_dim)
      for (const int64_t end = h + p_.group(); h < end; ++h) {
        const float weight = products_[h * vector_lanes][r];
        for (int64_t c = 0; c < pieces(); ++c) sums_[h * pieces() + c] += weight * piece(value, c);
      }
  }

  void finish() const {
    for (int64_t h = 0; h < head_count(); ++h) {
      T* to = p_.o + (query_ * p_.heads + first_ * p_.group() + h) * p_.head_dim;
      for (int64_t c = 0; c < pieces(); ++c)
        vstore(to + c * vector_lanes, sums_[h * pieces() + c] / weight_[h], p_.head_dim - c * vector_lanes);
    }
  }

  const Problem<T>& p_;
  int64_t query_, first_, last_;
  vfloat *q_, *sums_;                               // [heads, pieces]
  vfloat* products_;                                // [heads, vector_lanes]; then in a head's first the weights
  float *most_, *weight_;                           // [heads]
  std::vector<const T*>& rows_ = rows_of_thread();  // of the cache: the sequence, in its order
  int64_t begin_ = 0;                               // the block: its first place among them
  int count_ = 0;
};

}  // namespace

void decode_attention(Stream& stream, Tensor q, Tensor kv, Tensor cache, Tensor runs, Tensor place, Tensor o) {
  NOTELLM_CHECK(q.dims == 3 && kv.dims == 3 && runs.dims == 3, "q {}, kv {}, runs {}", describe(q), describe(kv),
                describe(runs));
  const int64_t queries = q.rows(), heads = q.shape[1], head_dim = q.shape[2], kv_heads = kv.shape[1] / 2;
  NOTELLM_CHECK(kv_heads > 0 && heads > 0 && head_dim > 0 && heads % kv_heads == 0, "{} heads of {} over {} kv heads",
                heads, head_dim, kv_heads);
  expect("kv", kv, q.dtype, queries, 2 * kv_heads * head_dim);
  expect("cache", cache, q.dtype, cache.rows(), kv.cols());
  expect("runs", runs, DType::i32, queries, 2 * runs.shape[1]);
  expect("place", place, DType::i32, queries);
  expect("o", o, q.dtype, queries, q.cols());
  if constexpr (cuda_built)
    if (stream.on_gpu()) {
      NOTELLM_CHECK(head_dim <= 256, "head_dim {}, but CUDA has at most 256 here", head_dim);
      return gpu::decode_attention(stream, q, kv, cache, runs, place, o);
    }
  expect_rows(cache, runs, place);
  with_float_type("q", q, [&]<class T>(T) {
    const Problem<T> problem{
        q.as<T>(),     kv.as<T>(), cache.as<T>(), o.as<T>(), runs.as<int32_t>(), place.as<int32_t>(), queries,
        runs.shape[1], heads,      kv_heads,      head_dim};
    // Few queries: their heads apart, so that every thread has some.
    const int64_t wanted = 2 * omp_get_max_threads();
    const int64_t parts = std::clamp<int64_t>((wanted + queries - 1) / std::max<int64_t>(1, queries), 1, kv_heads);
    const auto run = [&]<int whole>() {
#pragma omp parallel for schedule(static) if (queries * q.cols() > 256)
      for (int64_t item = 0; item < queries * parts; ++item) {
        const int64_t part = item % parts;
        Decoding<T, whole>(problem, item / parts, kv_heads * part / parts, kv_heads * (part + 1) / parts).run();
      }
    };
    if (head_dim == 4 * vector_lanes) return run.template operator()<4>();
    if (head_dim == 8 * vector_lanes) return run.template operator()<8>();
    run.template operator()<0>();
  });
}

}  // namespace notellm
