#include <gtest/gtest.h>

#include <random>

#include "data_pipeline/bpe.h"
#include "data_pipeline/byte_letters.h"

namespace notellm {
namespace {

using Tokens = std::vector<int32_t>;

Tokens encode(const Bpe& bpe, const std::string& text, std::vector<uint32_t>* lengths = nullptr) {
  Tokens ids;
  bpe.encode(text, ids, lengths);
  return ids;
}

// 0 a, 1 b, 2 c, 3 ab, 4 bc, 5 abc, 6 aa, 7 ?; "bc" comes before "ab".
BpeSpec small() {
  BpeSpec spec;
  spec.pieces = {"a", "b", "c", "ab", "bc", "abc", "aa", "?"};
  spec.merges = {{1, 2, 4}, {0, 1, 3}, {0, 4, 5}, {0, 0, 6}};
  spec.unknown = 7;
  return spec;
}

TEST(Bpe, MergesInTheOrderOfTheList) {
  const Bpe bpe(small(), false, {});
  EXPECT_EQ(encode(bpe, ""), Tokens{});
  EXPECT_EQ(encode(bpe, "ab"), Tokens{3});
  EXPECT_EQ(encode(bpe, "abc"), Tokens{5});       // b c first, then a bc
  EXPECT_EQ(encode(bpe, "aaa"), (Tokens{6, 0}));  // the leftmost of equal ones
  EXPECT_EQ(encode(bpe, "aabb"), (Tokens{0, 3, 1}));
  EXPECT_EQ(encode(bpe, "cba"), (Tokens{2, 1, 0}));
}

TEST(Bpe, UnknownCharacters) {
  BpeSpec spec = small();
  std::vector<uint32_t> lengths;
  EXPECT_EQ(encode(Bpe(spec, false, {}), "a\u00e9\u4e2db", &lengths), (Tokens{0, 7, 7, 1}));
  EXPECT_EQ(lengths, (std::vector<uint32_t>{1, 2, 3, 1}));
  spec.fuse_unknown = true;
  lengths.clear();
  EXPECT_EQ(encode(Bpe(spec, false, {}), "a\u00e9\u4e2db", &lengths), (Tokens{0, 7, 1}));
  EXPECT_EQ(lengths, (std::vector<uint32_t>{1, 5, 1}));
  EXPECT_EQ(encode(Bpe(spec, false, {}), "?\u00e9"), (Tokens{7, 7}));  // the first is the piece itself
  spec.byte_fallback = true;
  for (int byte = 0; byte < 256; ++byte) spec.pieces.push_back(fmt::format("<0x{:02X}>", byte));
  EXPECT_EQ(encode(Bpe(spec, false, {}), "a\u00e9"), (Tokens{0, 8 + 0xc3, 8 + 0xa9}));
}

TEST(Bpe, WholePiecesComeFirstWithIgnoreMerges) {
  BpeSpec spec = small();
  spec.pieces.push_back("cab");  // 8, which no merge gives
  EXPECT_EQ(encode(Bpe(spec, false, {}), "cab"), (Tokens{2, 3}));
  spec.ignore_merges = true;
  EXPECT_EQ(encode(Bpe(spec, false, {}), "cab"), Tokens{8});
  EXPECT_EQ(encode(Bpe(spec, false, Tokens{8}), "cab"), (Tokens{2, 3}));
}

TEST(ByteLetters, AreGpt2s) {
  EXPECT_EQ(bytes_of_letters("\u0120a\u010a"), " a\n");
  EXPECT_EQ(bytes_of_letters("\u00a1\u0100\u0143"), (std::string("\xa1\0\xad", 3)));
  for (const char* text : {" ", "\u0144", "\u4e2d", "\u00ad"}) EXPECT_FALSE(bytes_of_letters(text)) << text;
}

// Long pieces, which are merged by a heap, against short ones and a plain loop over all pairs.
TEST(Bpe, LongPiecesAreMergedAsShortOnes) {
  std::mt19937 random(3);
  BpeSpec spec;
  spec.pieces = {"a", "b", "c"};
  while (spec.pieces.size() < 60) {
    const auto left = static_cast<int32_t>(random() % spec.pieces.size()),
               right = static_cast<int32_t>(random() % spec.pieces.size());
    const std::string piece = spec.pieces[left] + spec.pieces[right];
    if (piece.size() > 12 || std::ranges::find(spec.pieces, piece) != spec.pieces.end()) continue;
    spec.merges.push_back({left, right, static_cast<int32_t>(spec.pieces.size())});
    spec.pieces.push_back(piece);
  }
  std::ranges::shuffle(spec.merges, random);
  spec.unknown = 0;
  const Bpe bpe(spec, false, {});
  for (const size_t length : {1, 2, 10, 47, 48, 49, 50, 100, 1000}) {
    std::string text;
    for (size_t i = 0; i < length; ++i) text += "abc"[random() % 3];
    Tokens plain;
    for (const char c : text) plain.push_back(c - 'a');
    for (bool merged = true; merged;) {
      merged = false;
      for (const BpeSpec::Merge& merge : spec.merges) {
        for (size_t i = 0; i + 1 < plain.size() && !merged; ++i) {
          if (plain[i] != merge.left || plain[i + 1] != merge.right) continue;
          plain[i] = merge.result;
          plain.erase(plain.begin() + static_cast<ptrdiff_t>(i) + 1);
          merged = true;
        }
        if (merged) break;
      }
    }
    EXPECT_EQ(encode(bpe, text), plain) << length;
  }
}

}  // namespace
}  // namespace notellm
