// The letters by which byte-level vocabularies (GPT-2's and all after it) write bytes: printable Latin-1 characters
// stand for themselves, the other 68 bytes are U+0100, U+0101, … in their order, so that a space is "Ġ".
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace notellm {

// The bytes that `letters` (UTF-8) stands for; none where one of its characters is no such letter.
std::optional<std::string> bytes_of_letters(std::string_view letters);

}  // namespace notellm
