// Characters of UTF-8 text, for what is printed in columns.
#pragma once

#include <algorithm>
#include <string_view>

namespace notellm {

inline bool begins_character(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) != 0x80; }

// Characters, not bytes.
inline size_t count_characters(std::string_view text) {
  return static_cast<size_t>(std::ranges::count_if(text, begins_character));
}

}  // namespace notellm
