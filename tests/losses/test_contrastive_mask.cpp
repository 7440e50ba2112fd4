#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "losses/contrastive_mask.h"
#include "tests/support/expect_error.h"
#include "tests/support/shared.h"

namespace notellm {
namespace {

using Rows = std::vector<std::vector<int32_t>>;

Rows rows_of(const ContrastiveMask& mask) {
  const auto begin = mask.begin().span<int32_t>(), columns = mask.columns().span<int32_t>();
  EXPECT_EQ(begin.front(), 0);
  EXPECT_EQ(begin.back(), static_cast<int32_t>(columns.size()));
  Rows rows;
  for (size_t i = 0; i + 1 < begin.size(); ++i)
    rows.emplace_back(columns.begin() + begin[i], columns.begin() + begin[i + 1]);
  return rows;
}

// By the definition: every row against every column.
Rows brute_force(const std::vector<int64_t>& ids, int64_t first, int64_t last, bool mask_known) {
  std::set<std::pair<int64_t, int64_t>> pairs;
  for (size_t j = 0; j < ids.size(); ++j) pairs.insert({ids[j], ids[j ^ 1]});
  Rows rows;
  for (int64_t i = first; i < last; ++i) {
    rows.emplace_back();
    for (int32_t j = 0; j < static_cast<int32_t>(ids.size()); ++j)
      if (j == i || (mask_known && j != (i ^ 1) && (ids[j] == ids[i] || pairs.count({ids[i], ids[j]}))))
        rows.back().push_back(j);
  }
  return rows;
}

TEST(ContrastiveMask, ByHand) {
  // Pairs (7, 8), (7, 9), (5, 5).
  const std::vector<int64_t> ids{7, 8, 7, 9, 5, 5};
  ContrastiveMask mask;
  mask.build(ids, 0, 6, true);
  EXPECT_EQ(rows_of(mask), (Rows{{0, 2, 3}, {1, 2}, {0, 1, 2}, {0, 3}, {4}, {5}}));
  mask.build(ids, 0, 6, false);
  EXPECT_EQ(rows_of(mask), (Rows{{0}, {1}, {2}, {3}, {4}, {5}}));
  mask.build(ids, 3, 5, true);
  EXPECT_EQ(rows_of(mask), (Rows{{0, 3}, {4}}));
}

TEST(ContrastiveMask, AgainstBruteForce) {
  std::mt19937_64 random(1);
  ContrastiveMask mask;  // one for all: nothing may stay from the batch before
  for (int64_t notes : {0, 2, 4, 10, 64, 300})
    for (int64_t distinct : {1, 3, 20, 1000}) {
      std::vector<int64_t> ids(notes);
      for (int64_t& id : ids)
        id = static_cast<int64_t>(random() % static_cast<uint64_t>(distinct)) * 1'000'000'007 - 500;
      for (bool known : {false, true}) {
        mask.build(ids, 0, notes, known);
        EXPECT_EQ(rows_of(mask), brute_force(ids, 0, notes, known)) << notes << " " << distinct;
        mask.build(ids, notes / 3, notes - notes / 4, known);
        EXPECT_EQ(rows_of(mask), brute_force(ids, notes / 3, notes - notes / 4, known));
      }
    }
}

TEST(ContrastiveMask, Golden) {
  NOTELLM_NEEDS_SHARED("golden/objective.json");
  const auto golden = nlohmann::json::parse(std::ifstream(test::shared_path("golden/objective.json")));
  ASSERT_GT(golden["cases"].size(), 0u);
  for (const auto& item : golden["cases"]) {
    const std::vector<int64_t> ids = item["note_ids"];
    Rows expected(ids.size());
    for (size_t i = 0; i < ids.size(); ++i) expected[i].push_back(static_cast<int32_t>(i));
    for (const auto& pair : item["masked_pairs"]) expected[pair[0].get<size_t>()].push_back(pair[1]);
    for (auto& row : expected) std::sort(row.begin(), row.end());
    ContrastiveMask mask;
    mask.build(ids, 0, static_cast<int64_t>(ids.size()), item["mask_known"]);
    EXPECT_EQ(rows_of(mask), expected) << item["name"];
  }
}

TEST(ContrastiveMask, ABigBatchTakesNoQuadraticTime) {
  // 65,536 notes, some of them often, as in a click log. All pairs of notes would be 4·10⁹ looks; the bound is loose,
  // so that only such a thing breaks it.
  std::mt19937_64 random(1);
  std::vector<int64_t> ids(65536);
  for (int64_t& id : ids) id = static_cast<int64_t>(std::pow(2.0, static_cast<double>(random() % 20000) / 1000.0));
  for (int64_t& id : ids) id = id < 500 ? static_cast<int64_t>(random() >> 1) : id;
  ContrastiveMask mask;
  mask.build(ids, 0, 65536, true);
  const auto start = std::chrono::steady_clock::now();
  mask.build(ids, 0, 65536, true);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  RecordProperty("milliseconds", fmt::format("{:.1f}", seconds * 1e3));
  RecordProperty("masked", fmt::format("{}", mask.columns().rows()));
  EXPECT_LT(seconds, 1.0) << mask.columns().rows() << " masked columns";
}

TEST(ContrastiveMask, Errors) {
  ContrastiveMask mask;
  const std::vector<int64_t> odd{1, 2, 3}, ids{1, 2, 3, 4};
  EXPECT_ERROR(internal, "3 notes", mask.build(odd, 0, 3, true));
  EXPECT_ERROR(internal, "rows 2..5 of 4", mask.build(ids, 2, 5, true));
  EXPECT_ERROR(internal, "rows -1..2 of 4", mask.build(ids, -1, 2, true));
  EXPECT_ERROR(internal, "rows 3..2 of 4", mask.build(ids, 3, 2, true));
}

}  // namespace
}  // namespace notellm
