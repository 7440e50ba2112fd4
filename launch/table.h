// Text in aligned columns, for people.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace notellm {

class Table {
 public:
  // One letter a column: l or r, the side on which its cells stand.
  explicit Table(std::string alignment) : alignment_(std::move(alignment)) {}

  // As many cells as columns.
  void row(std::vector<std::string> cells);
  // Lines of `indent` spaces and the cells, two spaces apart; no spaces at their ends.
  std::string text(int indent = 0) const;

 private:
  std::string alignment_;
  std::vector<std::vector<std::string>> rows_;
};

// At most `most` characters on one line: line breaks become spaces, longer text ends in "…".
std::string one_line(std::string_view text, size_t most);
// "1.2 KiB", "34 MiB"
std::string format_bytes(double bytes);
// "270 GFLOP/s", "1.2 TFLOP/s", "680 TFLOP/s"
std::string format_flops(double per_second);

}  // namespace notellm
