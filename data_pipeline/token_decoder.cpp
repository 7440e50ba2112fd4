#include "data_pipeline/token_decoder.h"

#include <charconv>
#include <optional>

#include "data_pipeline/byte_letters.h"
#include "data_pipeline/normalizer.h"

namespace notellm {
namespace {

using Tokens = std::vector<std::string>;

std::string joined(const Tokens& tokens) {
  std::string text;
  for (const std::string& token : tokens) text += token;
  return text;
}

std::string as_utf8(const std::string& bytes) { return MappedText(bytes, false).text(); }

std::string from_letters(const Tokens& tokens) {
  std::string bytes;
  for (const std::string& token : tokens) bytes += bytes_of_letters(token).value_or(token);
  return as_utf8(bytes);
}

std::optional<char> byte_token(const std::string& token) {
  unsigned value = 0;
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  const auto [end, error] = std::from_chars(token.data() + 3, token.data() + 5, value, 16);
  if (error != std::errc() || end != token.data() + 5) return std::nullopt;
  return static_cast<char>(value);
}

Tokens from_byte_tokens(const Tokens& tokens) {
  Tokens result;
  std::string bytes;
  const auto flush = [&] {
    if (bytes.empty()) return;
    if (as_utf8(bytes) == bytes) {
      result.push_back(bytes);
    } else {
      for (size_t i = 0; i < bytes.size(); ++i) result.push_back("\xef\xbf\xbd");
    }
    bytes.clear();
  };
  for (const std::string& token : tokens) {
    if (const auto byte = byte_token(token)) {
      bytes += *byte;
      continue;
    }
    flush();
    result.push_back(token);
  }
  flush();
  return result;
}

void replace(std::string& token, const std::string& pattern, const std::string& content) {
  for (size_t at = token.find(pattern); at != std::string::npos; at = token.find(pattern, at + content.size()))
    token.replace(at, pattern.size(), content);
}

void strip(std::string& token, const std::string& pattern, int64_t start, int64_t stop) {
  for (; start > 0 && token.starts_with(pattern); --start) token.erase(0, pattern.size());
  for (; stop > 0 && token.ends_with(pattern); --stop) token.erase(token.size() - pattern.size());
}

}  // namespace

std::string decode_tokens(const std::vector<DecoderStep>& steps, bool had_prefix, Tokens tokens) {
  for (const DecoderStep& step : steps) {
    switch (step.kind) {
      case DecoderStep::Kind::byte_level:
        tokens = {from_letters(tokens)};
        break;
      case DecoderStep::Kind::byte_fallback:
        tokens = from_byte_tokens(tokens);
        break;
      case DecoderStep::Kind::metaspace:
        if (had_prefix && !tokens.empty()) strip(tokens[0], step.pattern, 1, 0);
        for (std::string& token : tokens) replace(token, step.pattern, " ");
        break;
      case DecoderStep::Kind::fuse:
        tokens = {joined(tokens)};
        break;
      case DecoderStep::Kind::strip:
        for (std::string& token : tokens) strip(token, step.pattern, had_prefix ? step.start : 0, step.stop);
        break;
      case DecoderStep::Kind::replace:
        for (std::string& token : tokens) replace(token, step.pattern, step.content);
        break;
    }
  }
  return joined(tokens);
}

}  // namespace notellm
