// What doctor says of more ranks and hosts than a test machine has.
#include <gtest/gtest.h>

#include "launch/agreement.h"
#include "launch/rank_links.h"
#include "launch/transport.h"

namespace notellm {
namespace {

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(RankLinks, FewRanksAreAMatrix) {
  const std::string text = link_text({{0, 1, 2.5, 3e9}, {0, 2, 50, 1e9}, {1, 2, 51, 1.25e9}}, {"a", "a", "b"});
  EXPECT_EQ(text,
            "  rank        0          1          2\n"
            "     0        –  3.00 GB/s  1.00 GB/s\n"
            "     1   2.5 µs          –  1.25 GB/s\n"
            "     2  50.0 µs    51.0 µs          –\n");
}

TEST(RankLinks, ManyRanksAreALineForEachTwoHosts) {
  const std::vector<std::string> hosts = {"a", "a", "a", "a", "a", "b", "b", "b", "b", "b"};
  std::vector<RankLink> links;
  for (int r = 0; r < 9; ++r) links.push_back({r, r + 1, 1.0 + r, r == 4 ? 1e9 : 5e9 - 1e8 * r});
  links.push_back({0, 5, 40, 0.5e9});
  const std::string text = link_text(links, hosts);
  EXPECT_TRUE(has(text, "4   1.0 to 4.0 µs  4.70 to 5.00  3 – 4")) << text;
  EXPECT_TRUE(has(text, "a – b      2  5.0 to 40.0 µs  0.50 to 1.00  0 – 5")) << text;
  EXPECT_TRUE(has(text, "4.20 to 4.50  8 – 9")) << text;
}

TEST(Clocks, OnlyThoseThatAreMoreThanASecondOffAreWarnedOf) {
  EXPECT_TRUE(clock_warnings({0, 0.9, -0.9}).empty());
  const auto warnings = clock_warnings({0, 1.5, 0.1, -30});
  ASSERT_EQ(warnings.size(), 2u);
  EXPECT_TRUE(has(warnings[0], "rank 1: its clock is 1.5 s ahead of rank 0's")) << warnings[0];
  EXPECT_TRUE(has(warnings[1], "rank 3: its clock is 30.0 s behind rank 0's")) << warnings[1];
}

TEST(Transport, IsNotGuessed) {
  EXPECT_EQ(transport_of({"ob1", {"self", "vader", "tcp"}}, true), "shared memory (ob1, vader)");
  EXPECT_EQ(transport_of({"ob1", {"self", "vader", "tcp"}}, false), "TCP (ob1, tcp)");
  EXPECT_EQ(transport_of({"ob1", {"self", "tcp"}}, true), "TCP (ob1, tcp)");
  EXPECT_EQ(transport_of({"ob1", {"self", "vader", "tcp", "openib"}}, false),
            "unknown (ob1: one of self, vader, tcp, openib)");
  EXPECT_EQ(transport_of({"ucx", {}}, false), "unknown (ucx)");
  EXPECT_EQ(transport_of({}, true), "unknown (this MPI does not tell)");
}

}  // namespace
}  // namespace notellm
