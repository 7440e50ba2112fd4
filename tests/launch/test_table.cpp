#include <gtest/gtest.h>

#include "launch/table.h"
#include "runtime/error.h"

namespace notellm {
namespace {

TEST(Table, AlignsByCharacters) {
  Table table("lr");
  table.row({"µs", "1"});
  table.row({"note", "123"});
  EXPECT_EQ(table.text(), "µs      1\nnote  123\n");
  EXPECT_EQ(table.text(2), "  µs      1\n  note  123\n");
  EXPECT_THROW(table.row({"one"}), Error);
}

TEST(Table, LinesEndWithoutSpaces) {
  Table table("ll");
  table.row({"a", "long"});
  table.row({"b", ""});
  EXPECT_EQ(table.text(), "a  long\nb\n");
}

TEST(FormatFlops, HasTwoOrThreeDigits) {
  EXPECT_EQ(format_flops(2.34e9), "2.3 GFLOP/s");
  EXPECT_EQ(format_flops(9.96e9), "10 GFLOP/s");
  EXPECT_EQ(format_flops(999.4e9), "999 GFLOP/s");
  EXPECT_EQ(format_flops(999.6e9), "1.0 TFLOP/s");
  EXPECT_EQ(format_flops(989.4e12), "989 TFLOP/s");
}

TEST(OneLine, CutsAtCharacters) {
  EXPECT_EQ(one_line("笔记本", 3), "笔记本");
  EXPECT_EQ(one_line("笔记本子", 3), "笔记…");
  EXPECT_EQ(one_line("a\nb\tc", 9), "a b c");
  EXPECT_EQ(one_line("", 3), "");
}

TEST(FormatBytes, ChoosesTheUnit) {
  EXPECT_EQ(format_bytes(17), "17 B");
  EXPECT_EQ(format_bytes(1536), "1.5 KiB");
  EXPECT_EQ(format_bytes(20.0 * (1 << 20)), "20 MiB");
}

}  // namespace
}  // namespace notellm
