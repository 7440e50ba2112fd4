#include "data_pipeline/json_node.h"

#include <algorithm>
#include <unordered_set>

#include "runtime/utf8.h"

namespace notellm {

using Json = nlohmann::json;

namespace {

// Goes over a file without keeping its values. What is wrong is thrown.
class Structure : public nlohmann::json_sax<Json> {
 public:
  explicit Structure(const std::string& file) : file_(file) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override { return open(); }
  bool start_array(size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    if (!keys_.back().insert(name).second)
      fail(ErrorKind::data, "{}: the key {} stands twice in one object", file_, Json(name).dump());
    return true;
  }
  bool parse_error(size_t, const std::string&, const Json::exception& error) override {
    fail(ErrorKind::data, "{}: not JSON, or cut short: {}", file_, error.what());
  }

 private:
  bool open() {
    keys_.emplace_back();
    if (std::ssize(keys_) > JsonNode::most_depth)
      fail(ErrorKind::data, "{}: values are nested more than {} deep", file_, JsonNode::most_depth);
    return true;
  }
  bool close() {
    keys_.pop_back();
    return true;
  }

  const std::string& file_;
  std::vector<std::unordered_set<std::string>> keys_;  // of the objects and lists that are open
};

}  // namespace

Json JsonNode::parse(const std::string& text, const std::string& file) {
  Structure structure(file);
  Json::sax_parse(text, &structure);
  return Json::parse(text);
}

void JsonNode::wrong(std::string_view message) const {
  std::string value = json_->dump();
  if (value.size() > 120) {
    size_t cut = value.find_last_of(" ,", 100);
    if (cut == std::string::npos) cut = 100;
    while (!begins_character(value[cut])) --cut;
    value = value.substr(0, cut) + " …";
  }
  fail(ErrorKind::data, "{}: {} is {}, {}", *file_, path_.empty() ? "the whole" : path_, value, message);
}

void JsonNode::unsupported(std::string_view supported) const {
  wrong(fmt::format("which is not supported; supported: {}", supported));
}

JsonNode JsonNode::at(std::string_view key) const {
  if (!json_->is_object()) wrong("not an object");
  const auto found = json_->find(key);
  if (found == json_->end()) fail(ErrorKind::data, "{}: {}.{} is missing", *file_, path_, key);
  return {*found, *file_, fmt::format("{}.{}", path_, key)};
}

std::optional<JsonNode> JsonNode::find(std::string_view key) const {
  if (!json_->is_object()) wrong("not an object");
  const auto found = json_->find(key);
  if (found == json_->end() || found->is_null()) return std::nullopt;
  return JsonNode(*found, *file_, fmt::format("{}.{}", path_, key));
}

std::vector<JsonNode> JsonNode::list() const {
  if (!json_->is_array()) wrong("not a list");
  std::vector<JsonNode> nodes;
  for (const Json& element : *json_) nodes.emplace_back(element, *file_, fmt::format("{}[{}]", path_, nodes.size()));
  return nodes;
}

std::string JsonNode::text() const {
  if (!json_->is_string()) wrong("not a text");
  return json_->get<std::string>();
}

bool JsonNode::flag() const {
  if (!json_->is_boolean()) wrong("not true or false");
  return json_->get<bool>();
}

int64_t JsonNode::number() const {
  if (!json_->is_number_integer()) wrong("not an integer");
  if (json_->is_number_unsigned() && json_->get<uint64_t>() > INT64_MAX) wrong("too large");
  return json_->get<int64_t>();
}

bool JsonNode::flag_or(std::string_view key, bool otherwise) const {
  const auto node = find(key);
  return node ? node->flag() : otherwise;
}

void JsonNode::only(std::initializer_list<std::string_view> keys) const {
  if (!json_->is_object()) wrong("not an object");
  for (const auto& [key, value] : json_->items())
    if (std::ranges::find(keys, key) == keys.end())
      JsonNode(value, *file_, fmt::format("{}.{}", path_, key))
          .unsupported(fmt::format("the keys {}", fmt::join(keys, ", ")));
}

}  // namespace notellm
