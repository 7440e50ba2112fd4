// A value of a JSON file that is read strictly: it knows its file and path for messages.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/error.h"

namespace notellm {

class JsonNode {
 public:
  // Of a file's values: they are destroyed and printed by recursion.
  static constexpr int most_depth = 64;
  // The whole file. Throws Error(data): not JSON, an object that has a key twice, or values nested more than 64 deep.
  static nlohmann::json parse(const std::string& text, const std::string& file);

  // Does not own: `json` and `file` must live as long.
  JsonNode(const nlohmann::json& json, const std::string& file, std::string path = "")
      : json_(&json), file_(&file), path_(std::move(path)) {}

  const std::string& path() const { return path_; }
  bool is_null() const { return json_->is_null(); }
  const nlohmann::json& json() const { return *json_; }

  // All throw Error(data), naming the value, where it is another type; at: where the key is missing.
  JsonNode at(std::string_view key) const;
  std::optional<JsonNode> find(std::string_view key) const;  // none: missing, or null
  std::vector<JsonNode> list() const;
  std::string text() const;
  bool flag() const;
  int64_t number() const;
  bool flag_or(std::string_view key, bool otherwise) const;

  // This is an object with these keys at most.
  void only(std::initializer_list<std::string_view> keys) const;
  // "FILE: PATH is VALUE, which is not supported; …"
  [[noreturn]] void unsupported(std::string_view supported) const;
  // "FILE: PATH is VALUE, MESSAGE"
  [[noreturn]] void wrong(std::string_view message) const;
  void require(bool condition, std::string_view supported) const {
    if (!condition) unsupported(supported);
  }

 private:
  const nlohmann::json* json_;
  const std::string* file_;
  std::string path_;
};

}  // namespace notellm
