#include "model/generator.h"

#include <cmath>
#include <limits>

#include "runtime/random.h"

namespace notellm {
namespace {

GenerationConfig checked(const GenerationConfig& c) {
  const Sampling& s = c.sampling;
  if (c.max_tokens < 1) fail(ErrorKind::usage, "{} tokens at most, but an output has at least 1", c.max_tokens);
  if (!(s.temperature > 0 && std::isfinite(s.temperature)))
    fail(ErrorKind::usage, "temperature {}, but it must be above 0, and finite", s.temperature);
  if (s.top_k < 0) fail(ErrorKind::usage, "top-k {}, but it must be at least 0 (0: all tokens)", s.top_k);
  if (!(s.top_p > 0 && s.top_p <= 1)) fail(ErrorKind::usage, "top-p {}, but it must be above 0 and at most 1", s.top_p);
  return c;
}

// Memory for elements of a type that grows and is used again.
Tensor take(Buffer& buffer, Device device, DType dtype, std::initializer_list<int64_t> sizes) {
  int64_t bytes = size_of(dtype);
  for (const int64_t size : sizes) bytes *= size;
  if (buffer.bytes() < bytes) buffer = Buffer(bytes, memory_of(device), "next tokens");
  return buffer.tensor(dtype, sizes);
}

}  // namespace

Generator::Generator(const ModelConfig& config, DType compute, const GenerationConfig& generation, Device device,
                     Communicator* tensor)
    : config_(checked(generation)),
      device_(device),
      decoder_(config, compute, device, tensor),
      lists_(device),
      numbers_(device) {}

std::vector<Generated> Generator::run(Stream& stream, const Weights& weights, const PackedBatch& batch,
                                      const OutputRules& rules, Tensor vectors) {
  if (rules.closed && rules.closed->longest() > config_.max_tokens)
    fail(ErrorKind::data, "an output of the closed set has {} tokens, but at most {} may be generated",
         rules.closed->longest(), config_.max_tokens);
  decoder_.begin(stream, weights, batch, config_.max_tokens - 1, vectors);
  std::vector<Generated> outputs(batch.note_rows.size());
  open_.clear();
  for (size_t i = 0; i < outputs.size(); ++i) open_.push_back({static_cast<int32_t>(i), TokenTrie::root});
  std::vector<int32_t> notes;
  while (!open_.empty()) {
    choose(stream, batch, rules);
    advance(batch, rules, outputs);
    if (open_.empty()) break;
    notes.clear();
    for (const Open& o : open_) notes.push_back(o.note);
    decoder_.step(stream, notes, tokens_);
    ++steps_;
  }
  return outputs;
}

// Takes the chosen tokens; those of notes that are done leave tokens_ with their notes.
void Generator::advance(const PackedBatch& batch, const OutputRules& rules, std::vector<Generated>& outputs) {
  size_t left = 0;
  for (size_t i = 0; i < open_.size(); ++i) {
    Open o = open_[i];
    Generated& output = outputs[o.note];
    const int32_t token = tokens_[i];
    if (token < 0)
      fail(ErrorKind::diverged, "logits of note {} are no finite numbers: the weights are broken, or training diverged",
           batch.note_ids[o.note]);
    output.ended = token == rules.eos;
    if (output.ended) continue;
    output.tokens.push_back(token);
    if (rules.closed) {
      o.node = rules.closed->next(o.node, token);
      const auto candidates = rules.closed->candidates(o.node);
      output.ended = candidates.size() == 1 && candidates[0] == rules.eos;
      if (output.ended) continue;
      if (decoder_.room(o.note) < 1)
        fail(ErrorKind::data, "a prompt leaves no room in the model's context for the closed set of outputs");
    }
    if (std::ssize(output.tokens) == config_.max_tokens || decoder_.room(o.note) < 1) continue;
    open_[left] = o;
    tokens_[left++] = token;
  }
  open_.resize(left);
  tokens_.resize(left);
}

void Generator::choose(Stream& stream, const PackedBatch& batch, const OutputRules& rules) {
  tokens_.resize(open_.size());
  if (config_.greedy)
    choose_likeliest(stream, rules);
  else
    draw(stream, batch, rules);
}

// Each note's candidates among the columns, as columns from their first one on. The views last until the next call.
Candidates Generator::candidates_of(Stream& stream, const OutputRules& rules, Columns columns) {
  if (!rules.closed) return {columns.count(), {}, {}};
  offsets_.assign(1, 0);
  listed_.clear();
  for (const Open& o : open_) {
    for (const int32_t token : rules.closed->candidates(o.node))
      if (columns.begin <= token && token < columns.end) listed_.push_back(static_cast<int32_t>(token - columns.begin));
    offsets_.push_back(static_cast<int32_t>(listed_.size()));
  }
  lists_.send({{Tensor::of(offsets_.data(), {std::ssize(offsets_)}), &offsets_view_},
               {Tensor::of(listed_.data(), {std::ssize(listed_)}), &listed_view_}});
  lists_.wait(stream);
  return {columns.count(), offsets_view_, listed_view_};
}

// The likeliest of the rank's columns, then of all ranks'.
void Generator::choose_likeliest(Stream& stream, const OutputRules& rules) {
  const Tensor logits = decoder_.logits();
  const auto m = std::ssize(open_);
  const int64_t begin = decoder_.part().index * logits.cols();
  const Columns columns{begin, std::clamp(rules.vocabulary, begin, begin + logits.cols())};
  tokens_.assign(open_.size(), -1);
  largest_.assign(open_.size(), -std::numeric_limits<float>::infinity());
  if (columns.count() > 0) {
    const Candidates candidates = candidates_of(stream, rules, columns);
    const Tensor token = take(token_memory_, device_, DType::i32, {m}),
                 largest = take(largest_memory_, device_, DType::f32, {m});
    argmax(stream, logits, candidates, token, largest);
    lists_.done(stream);
    copy(stream, token, Tensor::of(tokens_.data(), {m}));
    copy(stream, largest, Tensor::of(largest_.data(), {m}));
    stream.synchronize();
    for (int64_t i = 0; i < m; ++i) {
      const bool none = rules.closed && offsets_[i] == offsets_[i + 1];
      if (none) largest_[i] = -std::numeric_limits<float>::infinity();
      if (tokens_[i] >= 0) tokens_[i] += static_cast<int32_t>(columns.begin);
    }
  }
  if (decoder_.part().count > 1) combine_parts();
}

// Of equal logits the first rank's: its tokens are the smaller ones. A rank without a candidate has −1 and −inf; what
// is broken on one rank is broken on all.
void Generator::combine_parts() {
  const auto m = std::ssize(open_), ranks = std::ptrdiff_t{decoder_.part().count};
  const std::vector<int64_t> rows(static_cast<size_t>(ranks), m);
  std::vector<int32_t> tokens(static_cast<size_t>(ranks * m));
  std::vector<float> largest(static_cast<size_t>(ranks * m));
  Communicator& group = decoder_.tensor();
  group.all_gather_rows("next tokens", Tensor::of(tokens_.data(), {m}), rows, Tensor::of(tokens.data(), {ranks * m}));
  group.all_gather_rows("next tokens", Tensor::of(largest_.data(), {m}), rows, Tensor::of(largest.data(), {ranks * m}));
  for (int64_t i = 0; i < m; ++i) {
    int64_t best = i;
    for (int64_t at = i; at < ranks * m; at += m) {
      const bool broken = tokens[at] < 0 && largest[at] != -std::numeric_limits<float>::infinity();
      if (broken || largest[at] > largest[best]) best = at;
      if (broken) break;
    }
    tokens_[i] = tokens[best];
  }
}

void Generator::draw(Stream& stream, const PackedBatch& batch, const OutputRules& rules) {
  const Tensor logits = whole_logits(stream);
  const auto m = std::ssize(open_);
  uniform_.clear();
  for (const Open& o : open_) {
    const auto token = static_cast<uint64_t>(decoder_.new_tokens(o.note));
    const uint64_t bits = random_bits(config_.seed, static_cast<uint64_t>(batch.note_ids[o.note]), token);
    uniform_.push_back(static_cast<float>(bits >> 40) * 0x1p-24f);
  }
  const Candidates candidates = candidates_of(stream, rules, {0, rules.vocabulary});
  numbers_.send({{Tensor::of(uniform_.data(), {m}), &uniform_view_}});
  numbers_.wait(stream);
  const Tensor token = take(token_memory_, device_, DType::i32, {m});
  sample(stream, logits, candidates, config_.sampling, uniform_view_, token);
  lists_.done(stream);
  numbers_.done(stream);
  copy(stream, token, Tensor::of(tokens_.data(), {m}));
  stream.synchronize();
}

// The logits of all ranks' columns: [notes, vocabulary].
Tensor Generator::whole_logits(Stream& stream) {
  const Tensor own = decoder_.logits();
  const int64_t m = own.rows(), ranks = decoder_.part().count;
  if (ranks == 1) return own;
  const Tensor gathered = take(gathered_memory_, device_, DType::f32, {ranks * m, own.cols()}),
               whole = take(whole_memory_, device_, DType::f32, {m * ranks, own.cols()});
  decoder_.tensor().all_gather_rows(stream, "logits", own, std::vector<int64_t>(static_cast<size_t>(ranks), m),
                                    gathered);
  for (int64_t rank = 0; rank < ranks; ++rank)
    for (int64_t i = 0; i < m; ++i)
      copy(stream, gathered.slice(rank * m + i, rank * m + i + 1), whole.slice(i * ranks + rank, i * ranks + rank + 1));
  return whole.reshape({m, ranks * own.cols()});
}

}  // namespace notellm
