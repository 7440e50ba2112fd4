// Byte pair encoding of one piece of text.
//
// The piece's characters (of a byte-level vocabulary: its bytes) are merged: again and again the two neighbours whose
// merge comes first in the file's list, of equal ones the leftmost, until none is in the list.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace notellm {

struct BpeSpec {
  struct Merge {
    int32_t left, right, result;
  };
  std::vector<std::string> pieces;  // by id
  std::vector<Merge> merges;        // in their order; no pair twice
  std::optional<int32_t> unknown;   // for a character that is not in the vocabulary
  bool fuse_unknown = false;        // one for neighbours of these
  bool byte_fallback = false;       // … instead, its bytes, as the pieces "<0x00>" … "<0xFF>"
  bool ignore_merges = false;       // a piece of text that is in the vocabulary is that token, whatever the merges give
};

class Bpe {
 public:
  // byte_level: pieces are written in byte_letters.h. `never`: ids that no text gives by ignore_merges.
  // Requires of another vocabulary that each character gives some token: all bytes for byte_fallback, or `unknown`.
  // Bytes that a byte-level one does not have are `unknown`; without that they are dropped, as the `tokenizers` library
  // does it.
  Bpe(const BpeSpec& spec, bool byte_level, std::span<const int32_t> never);

  // Appends the tokens of `text` (valid UTF-8) to `ids`, and to `lengths`, if given, how many bytes each is of, those
  // that were dropped before it included.
  // Thread-safe. Time: n log n of the length.
  void encode(std::string_view text, std::vector<int32_t>& ids, std::vector<uint32_t>* lengths) const;

 private:
  static constexpr uint32_t none = UINT32_MAX;
  struct Symbol {
    int32_t id;
    uint32_t length;
    uint32_t rank;      // of the merge with the next one, or none
    int32_t merged_id;  // what that merge gives
  };
  // Merges by pair: a hash table with open addresses.
  struct Slot {
    uint64_t pair = UINT64_MAX;
    uint32_t rank = none;
    int32_t id = 0;
  };
  void symbols_of(std::string_view text, std::vector<Symbol>& symbols) const;
  void add_symbol(int32_t id, uint32_t length, bool& after_unknown, std::vector<Symbol>& symbols) const;
  void add_character(std::string_view character, bool& after_unknown, std::vector<Symbol>& symbols) const;
  size_t slot_of(uint64_t pair) const;
  void look_up(Symbol& symbol, const Symbol& next) const;
  void merge_few(std::vector<Symbol>& symbols) const;
  void merge_many(std::vector<Symbol>& symbols) const;

  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  bool byte_level_;
  std::optional<int32_t> unknown_;
  bool fuse_unknown_;
  std::array<int32_t, 256> bytes_;                                              // −1: none
  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> characters_;  // not of a byte-level vocabulary
  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> whole_;       // with ignore_merges
  std::vector<Slot> slots_;
  int shift_ = 0;
};

}  // namespace notellm
