#include "data_pipeline/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <queue>
#include <utility>

#include "data_pipeline/byte_letters.h"
#include "runtime/error.h"
#include "runtime/utf8.h"

namespace notellm {
namespace {

size_t character_end(std::string_view text, size_t at) {
  do ++at;
  while (at < text.size() && !begins_character(text[at]));
  return at;
}

uint64_t pair_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

Bpe::Bpe(const BpeSpec& spec, bool byte_level, std::span<const int32_t> never)
    : byte_level_(byte_level), unknown_(spec.unknown), fuse_unknown_(spec.fuse_unknown) {
  bytes_.fill(-1);
  for (int32_t id = 0; id < std::ssize(spec.pieces); ++id) {
    std::string piece = spec.pieces[id];
    if (byte_level) {
      const auto bytes = bytes_of_letters(piece);
      if (!bytes) continue;
      piece = *bytes;
      if (piece.size() == 1) bytes_[static_cast<unsigned char>(piece[0])] = id;
    } else if (!piece.empty() && character_end(piece, 0) == piece.size()) {
      characters_.emplace(piece, id);
    }
    if (spec.ignore_merges && std::ranges::find(never, id) == never.end()) whole_.emplace(piece, id);
  }
  for (int byte = 0; byte < 256 && spec.byte_fallback; ++byte) {
    const auto found = std::ranges::find(spec.pieces, fmt::format("<0x{:02X}>", byte));
    NOTELLM_CHECK(found != spec.pieces.end(), "byte {} has no piece", byte);
    bytes_[byte] = static_cast<int32_t>(found - spec.pieces.begin());
  }
  slots_.resize(std::bit_ceil(2 * spec.merges.size() + 2));
  shift_ = 64 - std::countr_zero(slots_.size());
  for (size_t rank = 0; rank < spec.merges.size(); ++rank) {
    const BpeSpec::Merge& merge = spec.merges[rank];
    const uint64_t pair = pair_of(merge.left, merge.right);
    slots_[slot_of(pair)] = {pair, static_cast<uint32_t>(rank), merge.result};
  }
}

size_t Bpe::slot_of(uint64_t pair) const {
  size_t slot = (pair * 0x9e3779b97f4a7c15u) >> shift_;
  while (slots_[slot].pair != pair && slots_[slot].pair != UINT64_MAX) slot = (slot + 1) & (slots_.size() - 1);
  return slot;
}

void Bpe::look_up(Symbol& symbol, const Symbol& next) const {
  const Slot& slot = slots_[slot_of(pair_of(symbol.id, next.id))];
  symbol.rank = slot.rank;
  symbol.merged_id = slot.id;
}

// Of no id: the unknown one.
void Bpe::add_symbol(int32_t id, uint32_t length, bool& after_unknown, std::vector<Symbol>& symbols) const {
  const bool fuse = id < 0 && after_unknown && fuse_unknown_;
  after_unknown = id < 0;
  if (fuse) {
    symbols.back().length += length;
  } else {
    symbols.push_back({id < 0 ? *unknown_ : id, length, none, 0});
  }
}

void Bpe::add_character(std::string_view character, bool& after_unknown, std::vector<Symbol>& symbols) const {
  const auto known = characters_.find(character);
  if (known == characters_.end() && bytes_[0] >= 0) {
    for (const char byte : character) add_symbol(bytes_[static_cast<unsigned char>(byte)], 1, after_unknown, symbols);
  } else {
    add_symbol(known == characters_.end() ? -1 : known->second, static_cast<uint32_t>(character.size()), after_unknown,
               symbols);
  }
}

void Bpe::symbols_of(std::string_view text, std::vector<Symbol>& symbols) const {
  symbols.clear();
  bool after_unknown = false;
  if (byte_level_) {
    uint32_t dropped = 0;  // bytes before the next symbol
    for (const char byte : text) {
      const int32_t id = bytes_[static_cast<unsigned char>(byte)];
      if (id < 0 && !unknown_) {
        ++dropped;
      } else {
        add_symbol(id, 1 + std::exchange(dropped, 0), after_unknown, symbols);
      }
    }
  } else {
    for (size_t begin = 0, end; begin < text.size(); begin = end) {
      end = character_end(text, begin);
      add_character(text.substr(begin, end - begin), after_unknown, symbols);
    }
  }
  for (size_t i = 0; i + 1 < symbols.size(); ++i) look_up(symbols[i], symbols[i + 1]);
}

// For short pieces: looks at all neighbours for each merge.
void Bpe::merge_few(std::vector<Symbol>& symbols) const {
  while (true) {
    const auto best = std::ranges::min_element(symbols, {}, &Symbol::rank);
    if (best == symbols.end() || best->rank == none) return;
    best->id = best->merged_id;
    best->length += (best + 1)->length;
    symbols.erase(best + 1);
    if (best + 1 == symbols.end()) {
      best->rank = none;
    } else {
      look_up(*best, *(best + 1));
    }
    if (best != symbols.begin()) look_up(*(best - 1), *best);
  }
}

// For long ones: a heap of merges, in which those that have been overtaken stay until their turn.
void Bpe::merge_many(std::vector<Symbol>& symbols) const {
  using Entry = std::pair<uint32_t, uint32_t>;  // rank, place
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> heap;
  const auto n = static_cast<uint32_t>(symbols.size());
  std::vector<uint32_t> before(n), behind(n);
  const auto offer = [&](uint32_t at) {
    if (symbols[at].rank != none) heap.emplace(symbols[at].rank, at);
  };
  for (uint32_t i = 0; i < n; ++i) {
    before[i] = i - 1;  // of the first one: none
    behind[i] = i + 1 < n ? i + 1 : none;
    offer(i);
  }
  while (!heap.empty()) {
    const auto [rank, at] = heap.top();
    heap.pop();
    Symbol& symbol = symbols[at];
    if (symbol.length == 0 || symbol.rank != rank) continue;
    Symbol& gone = symbols[behind[at]];
    symbol.id = symbol.merged_id;
    symbol.length += gone.length;
    gone.length = 0;
    behind[at] = behind[behind[at]];
    symbol.rank = none;
    if (behind[at] != none) {
      before[behind[at]] = at;
      look_up(symbol, symbols[behind[at]]);
      offer(at);
    }
    if (before[at] != none) {
      look_up(symbols[before[at]], symbol);
      offer(before[at]);
    }
  }
  std::erase_if(symbols, [](const Symbol& symbol) { return symbol.length == 0; });
}

void Bpe::encode(std::string_view text, std::vector<int32_t>& ids, std::vector<uint32_t>* lengths) const {
  constexpr size_t few = 48;
  if (const auto whole = whole_.find(text); whole != whole_.end()) {
    ids.push_back(whole->second);
    if (lengths) lengths->push_back(static_cast<uint32_t>(text.size()));
    return;
  }
  thread_local std::vector<Symbol> symbols;
  symbols_of(text, symbols);
  symbols.size() <= few ? merge_few(symbols) : merge_many(symbols);
  for (const Symbol& symbol : symbols) {
    ids.push_back(symbol.id);
    if (lengths) lengths->push_back(symbol.length);
  }
}

}  // namespace notellm
