// What a kind of tokenizer file has to do for the class Tokenizer: one implementation a kind.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace notellm {

// Where a text stands in its sequence.
enum class Place {
  begins,       // at the beginning, after BOS
  after_token,  // after a special token
  goes_on,      // after text that is cut at a space; nothing is put before it
};

class TokenizerBackend {
 public:
  virtual ~TokenizerBackend() = default;

  // All functions as in Tokenizer, less [EMB].
  virtual void encode(std::string_view text, Place place, std::vector<int32_t>& out) const = 0;
  virtual std::vector<size_t> token_ends(std::string_view text) const = 0;
  // Ids are in the vocabulary.
  virtual std::string decode(std::span<const int32_t> tokens, Place place) const = 0;
  virtual std::string piece(int32_t token) const = 0;
  virtual bool cuts_at_spaces() const = 0;

  virtual const char* kind() const = 0;
  virtual int32_t size() const = 0;  // ids are 0 … size − 1
  virtual std::optional<int32_t> bos() const = 0;
  virtual int32_t eos() const = 0;
  virtual std::optional<int32_t> emb() const = 0;  // where the file has a token "[EMB]" of its own
};

}  // namespace notellm
