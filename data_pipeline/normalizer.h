// What a tokenizer.json does to a text before it is split: NFC, and the replacing and prepending of LLaMA-2's files.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace notellm {

// A text that is changed, and which byte of the original each of its bytes comes from.
class MappedText {
 public:
  // Bytes that are no UTF-8 become U+FFFD, one for each longest run that begins a character (as Unicode recommends and
  // Python's errors="replace" does). tracked: ends() is kept.
  MappedText(std::string_view original, bool tracked);

  const std::string& text() const { return text_; }
  // Of each byte of text(): how many bytes of the original are used up once it is read. Where one character became
  // several bytes, or a text another one, only the last of them uses it up.
  const std::vector<uint32_t>& ends() const { return ends_; }

  // Its bytes begin … end − 1.
  MappedText part(size_t begin, size_t end) const;

  void nfc();
  // Puts `text` before, which comes from no byte; not before an empty text.
  void prepend(std::string_view text);
  // Each `pattern`, from left to right, becomes `content`. `pattern` is not empty.
  void replace(std::string_view pattern, std::string_view content);

 private:
  class Rewriter;
  MappedText() = default;
  std::string text_;
  std::vector<uint32_t> ends_;
  bool tracked_ = false;
};

struct NormalizerStep {
  enum class Kind { nfc, prepend, replace } kind;
  std::string pattern, content;  // replace: both; prepend: content
};

// `prepends` false leaves out the steps that put something before the text.
void normalize(const std::vector<NormalizerStep>& steps, bool prepends, MappedText& text);

}  // namespace notellm
