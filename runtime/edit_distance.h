// How far two names are apart, for "the nearest known name is …" in messages.
#pragma once

#include <string_view>

namespace notellm {

// Insertions, deletions, substitutions and swaps of neighbours that turn a into b.
int edit_distance(std::string_view a, std::string_view b);

}  // namespace notellm
