#include "launch/table.h"

#include <algorithm>

#include "runtime/error.h"
#include "runtime/utf8.h"

namespace notellm {

void Table::row(std::vector<std::string> cells) {
  NOTELLM_CHECK(cells.size() == alignment_.size(), "{} cells for {} columns", cells.size(), alignment_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::text(int indent) const {
  std::vector<size_t> widths(alignment_.size());
  for (const auto& cells : rows_)
    for (size_t i = 0; i < cells.size(); ++i) widths[i] = std::max(widths[i], count_characters(cells[i]));
  std::string text;
  for (const auto& cells : rows_) {
    std::string line(indent, ' ');
    for (size_t i = 0; i < cells.size(); ++i) {
      const std::string space(widths[i] - count_characters(cells[i]), ' ');
      line += (i ? "  " : "") + (alignment_[i] == 'r' ? space + cells[i] : cells[i] + space);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string one_line(std::string_view text, size_t most) {
  std::string line;
  size_t characters = 0;
  for (const char byte : text) {
    characters += begins_character(byte);
    if (characters > most) break;
    line += byte == '\n' || byte == '\r' || byte == '\t' ? ' ' : byte;
  }
  if (characters <= most) return line;
  while (!begins_character(line.back())) line.pop_back();
  line.pop_back();
  return line + "…";
}

std::string format_bytes(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  for (; bytes >= 1024 && unit + 1 < std::size(units); ++unit) bytes /= 1024;
  return fmt::format("{:.{}f} {}", bytes, unit > 0 && bytes < 10 ? 1 : 0, units[unit]);
}

std::string format_flops(double per_second) {
  const double giga = per_second / 1e9, tera = giga / 1000;
  if (giga < 999.5) return fmt::format("{:.{}f} GFLOP/s", giga, giga < 9.95 ? 1 : 0);
  return fmt::format("{:.{}f} TFLOP/s", tera, tera < 9.95 ? 1 : 0);
}

}  // namespace notellm
