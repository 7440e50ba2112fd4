#include "data_pipeline/byte_letters.h"

#include <unicode/utf8.h>

#include <array>

namespace notellm {
namespace {

constexpr bool stands_for_itself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

// Code point → byte, or −1.
constexpr auto make_table() {
  std::array<int16_t, 256 + 68> table{};
  table.fill(-1);
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) table[stands_for_itself(byte) ? byte : next++] = static_cast<int16_t>(byte);
  return table;
}
constexpr auto byte_of = make_table();

}  // namespace

std::optional<std::string> bytes_of_letters(std::string_view letters) {
  std::string bytes;
  const auto length = static_cast<int32_t>(letters.size());
  for (int32_t at = 0; at < length;) {
    UChar32 letter;
    U8_NEXT(letters.data(), at, length, letter);
    if (letter < 0 || letter >= static_cast<UChar32>(byte_of.size()) || byte_of[letter] < 0) return std::nullopt;
    bytes += static_cast<char>(byte_of[letter]);
  }
  return bytes;
}

}  // namespace notellm
