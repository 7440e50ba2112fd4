#include "data_pipeline/normalizer.h"

#include <unicode/bytestream.h>
#include <unicode/edits.h>
#include <unicode/normalizer2.h>
#include <unicode/utf8.h>

#include <algorithm>

#include "runtime/error.h"

namespace notellm {
namespace {

bool is_ascii(std::string_view text) {
  return std::ranges::all_of(text, [](char byte) { return static_cast<signed char>(byte) >= 0; });
}

const icu::Normalizer2& nfc_normalizer() {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* normalizer = icu::Normalizer2::getNFCInstance(status);
  NOTELLM_CHECK(U_SUCCESS(status), "ICU has no NFC: {}", u_errorName(status));
  return *normalizer;
}

}  // namespace

// Writes a new text from left to right beside the old one.
class MappedText::Rewriter {
 public:
  explicit Rewriter(MappedText& target) : target_(target) {}
  // The next `count` bytes of the old text stay.
  void keep(size_t count) {
    text_.append(target_.text_, at_, count);
    if (target_.tracked_)
      ends_.insert(ends_.end(), target_.ends_.begin() + static_cast<ptrdiff_t>(at_),
                   target_.ends_.begin() + static_cast<ptrdiff_t>(at_ + count));
    at_ += count;
  }
  // The next `count` bytes of the old text become `content`.
  void change(size_t count, std::string_view content) {
    if (target_.tracked_ && !content.empty()) {
      ends_.insert(ends_.end(), content.size() - 1, used());
      at_ += count;
      ends_.push_back(used());
    } else {
      at_ += count;
    }
    text_.append(content);
  }
  ~Rewriter() {
    target_.text_ = std::move(text_);
    target_.ends_ = std::move(ends_);
  }

 private:
  uint32_t used() const { return at_ == 0 ? 0 : target_.ends_[at_ - 1]; }

  MappedText& target_;
  std::string text_;
  std::vector<uint32_t> ends_;
  size_t at_ = 0;
};

MappedText::MappedText(std::string_view original, bool tracked) : text_(original), tracked_(tracked) {
  if (tracked) {
    ends_.resize(text_.size());
    for (size_t i = 0; i < text_.size(); ++i) ends_[i] = static_cast<uint32_t>(i + 1);
  }
  if (is_ascii(text_)) return;
  Rewriter rewriter(*this);
  const auto length = static_cast<int32_t>(text_.size());
  int32_t kept = 0;
  for (int32_t at = 0; at < length;) {
    const int32_t begin = at;
    UChar32 character;
    U8_NEXT(text_.data(), at, length, character);
    if (character >= 0) continue;
    rewriter.keep(static_cast<size_t>(begin - kept));
    rewriter.change(static_cast<size_t>(at - begin), "\xef\xbf\xbd");
    kept = at;
  }
  rewriter.keep(static_cast<size_t>(length - kept));
}

MappedText MappedText::part(size_t begin, size_t end) const {
  MappedText part;
  part.text_ = text_.substr(begin, end - begin);
  part.tracked_ = tracked_;
  if (tracked_)
    part.ends_.assign(ends_.begin() + static_cast<ptrdiff_t>(begin), ends_.begin() + static_cast<ptrdiff_t>(end));
  return part;
}

void MappedText::nfc() {
  if (is_ascii(text_)) return;
  UErrorCode status = U_ZERO_ERROR;
  const icu::StringPiece source(text_.data(), static_cast<int32_t>(text_.size()));
  if (nfc_normalizer().isNormalizedUTF8(source, status) && U_SUCCESS(status)) return;
  std::string result;
  icu::StringByteSink<std::string> sink(&result);
  icu::Edits edits;
  nfc_normalizer().normalizeUTF8(0, source, sink, &edits, status);
  NOTELLM_CHECK(U_SUCCESS(status), "ICU cannot normalise a text: {}", u_errorName(status));
  Rewriter rewriter(*this);
  for (icu::Edits::Iterator edit = edits.getFineIterator(); edit.next(status);) {
    if (edit.hasChange()) {
      rewriter.change(static_cast<size_t>(edit.oldLength()),
                      std::string_view(result).substr(static_cast<size_t>(edit.destinationIndex()),
                                                      static_cast<size_t>(edit.newLength())));
    } else {
      rewriter.keep(static_cast<size_t>(edit.oldLength()));
    }
  }
}

void MappedText::prepend(std::string_view text) {
  if (text_.empty() || text.empty()) return;
  text_.insert(0, text);
  if (tracked_) ends_.insert(ends_.begin(), text.size(), 0);
}

void MappedText::replace(std::string_view pattern, std::string_view content) {
  size_t found = text_.find(pattern);
  if (found == std::string::npos) return;
  Rewriter rewriter(*this);
  size_t kept = 0;
  for (; found != std::string::npos; found = text_.find(pattern, kept)) {
    rewriter.keep(found - kept);
    rewriter.change(pattern.size(), content);
    kept = found + pattern.size();
  }
  rewriter.keep(text_.size() - kept);
}

void normalize(const std::vector<NormalizerStep>& steps, bool prepends, MappedText& text) {
  for (const NormalizerStep& step : steps) {
    switch (step.kind) {
      case NormalizerStep::Kind::nfc:
        text.nfc();
        break;
      case NormalizerStep::Kind::prepend:
        if (prepends) text.prepend(step.content);
        break;
      case NormalizerStep::Kind::replace:
        text.replace(step.pattern, step.content);
        break;
    }
  }
}

}  // namespace notellm
