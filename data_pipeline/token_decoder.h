// From tokens back to text, as the decoder of a tokenizer.json says: steps that change a list of token texts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace notellm {

struct DecoderStep {
  enum class Kind {
    byte_level,     // all as one, whose letters (byte_letters.h) are bytes
    byte_fallback,  // neighbours "<0xE7>" "<0xAC>" … become the character, or U+FFFD each where they are none
    metaspace,      // `pattern` becomes a space; the one that was put before the text goes
    fuse,           // all as one
    strip,          // takes `pattern` off, up to `start` times at the beginning and `stop` times at the end of each
    replace,        // `pattern` becomes `content`
  } kind;
  std::string pattern, content;
  int64_t start = 0, stop = 0;
};

// had_prefix: something was put before the text when it was tokenised, which is taken off again: where not, metaspace
// keeps a first space, and strip takes nothing off the beginning. Bytes that are no UTF-8 become U+FFFD.
std::string decode_tokens(const std::vector<DecoderStep>& steps, bool had_prefix, std::vector<std::string> tokens);

}  // namespace notellm
