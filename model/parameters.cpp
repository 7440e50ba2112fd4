#include "model/parameters.h"

#include <algorithm>

namespace notellm {
namespace {
constexpr int64_t vocabulary_multiple = 64;
constexpr int64_t alignment_elements = 16;  // 64 bytes of f32

std::string layer_name(int layer, const char* rest) { return fmt::format("model.layers.{}.{}.weight", layer, rest); }
std::string bias_name(int layer, const char* which) {
  return fmt::format("model.layers.{}.self_attn.{}_proj.bias", layer, which);
}

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

void must_divide(const char* key, int64_t size, int ranks) {
  if (size % ranks == 0) return;
  fail(ErrorKind::usage,
       "{} {} does not divide by parallel.tensor {}; nearest that do: {} and {} (or another parallel.tensor)", key,
       size, ranks, size / ranks * ranks, (size / ranks + 1) * ranks);
}

}  // namespace

ModelConfig config_of_part(const ModelConfig& config, int ranks) {
  must_divide("model.heads", config.heads, ranks);
  must_divide("model.ffn", config.ffn, ranks);
  if (config.kv_heads % ranks != 0 && ranks % config.kv_heads != 0)
    fail(ErrorKind::usage,
         "parallel.tensor {} is neither a divisor nor a multiple of model.kv_heads {}: each rank holds whole kv heads, "
         "or each kv head stands on equally many ranks",
         ranks, config.kv_heads);
  if (vocabulary_multiple % ranks != 0)
    fail(ErrorKind::usage, "parallel.tensor {} does not divide {}, of which the vocabulary is a multiple: take {}",
         ranks, vocabulary_multiple, "1, 2, 4, 8, 16, 32 or 64");
  ModelConfig part = config;
  part.heads = config.heads / ranks;
  part.kv_heads = std::max(1, config.kv_heads / ranks);
  part.ffn = config.ffn / ranks;
  return part;
}

Tensor Parameter::view(Tensor flat) const {
  const Tensor part = flat.slice(offset, offset + size());
  return cols ? part.reshape({rows, cols}) : part;
}

void for_row_runs(const Parameter& p, int64_t first, int64_t count,
                  const std::function<void(int64_t whole, int64_t at, int64_t elements)>& take) {
  const int64_t cols = std::max<int64_t>(1, p.cols), all_cols = std::max<int64_t>(1, p.all_cols);
  if (cols == all_cols) return take(p.row_begin * cols + first, 0, count);
  for (int64_t i = first; i < first + count;) {
    const int64_t row = i / cols, col = i % cols, elements = std::min(cols - col, first + count - i);
    take((p.row_begin + row) * all_cols + p.col_begin + col, i - first, elements);
    i += elements;
  }
}

ParameterLayout::ParameterLayout(const ModelConfig& c, int64_t vocabulary, TensorPart part, int shards)
    : vocabulary_(vocabulary), part_(part), part_config_(config_of_part(c, part.count)) {
  using enum ParameterKind;
  add("model.embed_tokens.weight", embedding, vocabulary, c.dim, Split::rows);
  end_bucket(shards);
  const int64_t kv_rows = static_cast<int64_t>(c.kv_heads) * c.head_dim;
  for (int l = 0; l < c.layers; ++l) {
    add(layer_name(l, "input_layernorm"), norm, c.dim, 0);
    add(layer_name(l, "self_attn.q_proj"), matrix, c.q_dim(), c.dim, Split::rows);
    add(layer_name(l, "self_attn.k_proj"), matrix, kv_rows, c.dim, Split::rows);
    add(layer_name(l, "self_attn.v_proj"), matrix, kv_rows, c.dim, Split::rows);
    if (c.qkv_bias) {
      add(bias_name(l, "q"), bias, c.q_dim(), 0, Split::rows);
      add(bias_name(l, "k"), bias, kv_rows, 0, Split::rows);
      add(bias_name(l, "v"), bias, kv_rows, 0, Split::rows);
    }
    add(layer_name(l, "self_attn.o_proj"), matrix, c.dim, c.q_dim(), Split::columns);
    add(layer_name(l, "post_attention_layernorm"), norm, c.dim, 0);
    add(layer_name(l, "mlp.gate_proj"), matrix, c.ffn, c.dim, Split::rows);
    add(layer_name(l, "mlp.up_proj"), matrix, c.ffn, c.dim, Split::rows);
    add(layer_name(l, "mlp.down_proj"), matrix, c.dim, c.ffn, Split::columns);
    end_bucket(shards);
  }
  add("model.norm.weight", norm, c.dim, 0);
  if (!c.tied_head) add("lm_head.weight", embedding, vocabulary, c.dim, Split::rows);
  add("note_head.weight", matrix, c.note_dim, c.dim);
  add("note_head.tau", temperature, 1, 0);
  end_bucket(shards);
}

void ParameterLayout::add(std::string name, ParameterKind kind, int64_t rows, int64_t cols, Split split) {
  Parameter p{std::move(name), kind, rows, cols, 0, rows, cols, 0, 0, 1};
  // The halves of a block (k after q, v after k, up after gate) must touch: their sizes are aligned only as blocks.
  const bool continues = p.name.find(".v_proj.") != p.name.npos || p.name.find(".up_proj.") != p.name.npos;
  if (!continues) size_ = round_up(size_, alignment_elements);
  p.offset = size_;
  if (split == Split::none) p.copies = part_.count;
  if (split == Split::columns) {
    p.cols = cols / part_.count;
    p.col_begin = p.cols * part_.index;
  }
  if (split == Split::rows) {
    // Fewer kv heads than ranks: neighbours hold the same one.
    const bool kv = p.name.find(".k_proj.") != p.name.npos || p.name.find(".v_proj.") != p.name.npos;
    const int64_t parts = kv ? rows / (int64_t{part_config_.kv_heads} * part_config_.head_dim) : part_.count;
    p.copies = static_cast<int>(part_.count / parts);
    p.rows = rows / parts;
    p.row_begin = p.rows * (part_.index / p.copies);
  }
  all_.push_back(std::move(p));
  size_ += all_.back().size();
}

void ParameterLayout::end_bucket(int shards) {
  const int64_t begin = buckets_.empty() ? 0 : buckets_.back().end;
  size_ = begin + round_up(size_ - begin, alignment_elements * shards);
  buckets_.push_back({begin, size_});
}

const Parameter& ParameterLayout::at(const std::string& name) const {
  const auto found = std::find_if(all_.begin(), all_.end(), [&](const Parameter& p) { return p.name == name; });
  NOTELLM_CHECK(found != all_.end(), "no parameter {}", name);
  return *found;
}

namespace {

std::vector<Tensor> cut(const ParameterLayout& layout, Tensor flat) {
  std::vector<Tensor> buckets;
  for (const FlatRange& range : layout.buckets()) buckets.push_back(flat.slice(range.begin, range.end));
  return buckets;
}

}  // namespace

Weights::Weights(const ParameterLayout& layout, Tensor flat) : Weights(layout, cut(layout, flat)) {}

Weights::Weights(const ParameterLayout& layout, std::span<const Tensor> of_buckets)
    : buckets(of_buckets.begin(), of_buckets.end()) {
  const ModelConfig& c = layout.part_config();
  const auto& ranges = layout.buckets();
  NOTELLM_CHECK(buckets.size() == ranges.size(), "{} buckets, not {}", buckets.size(), ranges.size());
  // [rows, cols] from where a parameter begins on; it and perhaps those after it.
  const auto block = [&](const Parameter& p, int64_t rows, int64_t cols) {
    const size_t bucket = std::ranges::find_if(ranges, [&](FlatRange r) { return p.offset < r.end; }) - ranges.begin();
    const int64_t begin = p.offset - ranges[bucket].begin;
    const Tensor part = buckets[bucket].slice(begin, begin + rows * std::max<int64_t>(1, cols));
    return cols ? part.reshape({rows, cols}) : part;
  };
  const auto part = [&](const std::string& name) {
    const Parameter& p = layout.at(name);
    return block(p, p.rows, p.cols);
  };
  embedding = part("model.embed_tokens.weight");
  for (int l = 0; l < c.layers; ++l) {
    Tensor q_bias, kv_bias;
    if (c.qkv_bias) {
      q_bias = part(bias_name(l, "q"));
      kv_bias = block(layout.at(bias_name(l, "k")), c.kv_dim(), 0);
    }
    layers.push_back({
        .input_norm = part(layer_name(l, "input_layernorm")),
        .q = part(layer_name(l, "self_attn.q_proj")),
        .kv = block(layout.at(layer_name(l, "self_attn.k_proj")), c.kv_dim(), c.dim),
        .q_bias = q_bias,
        .kv_bias = kv_bias,
        .o = part(layer_name(l, "self_attn.o_proj")),
        .post_norm = part(layer_name(l, "post_attention_layernorm")),
        .gate_up = block(layout.at(layer_name(l, "mlp.gate_proj")), 2 * c.ffn, c.dim),
        .down = part(layer_name(l, "mlp.down_proj")),
    });
  }
  final_norm = part("model.norm.weight");
  head = c.tied_head ? embedding : part("lm_head.weight");
  note_projection = part("note_head.weight");
  tau = part("note_head.tau");
}

int64_t padded_vocabulary(int64_t tokens) { return round_up(tokens, vocabulary_multiple); }

}  // namespace notellm
