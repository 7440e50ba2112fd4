#include "data_pipeline/json_node.h"

#include <algorithm>
#include <unordered_set>

namespace notellm {

using Json = nlohmann::json;

Json JsonNode::parse(const std::string& text, const std::string& file) {
  std::vector<std::unordered_set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second)
      fail(ErrorKind::data, "{}: the key {} stands twice in one object", file, value.dump());
    return true;
  };
  try {
    return Json::parse(text, check);
  } catch (const Json::exception& error) {
    fail(ErrorKind::data, "{}: not JSON, or cut short: {}", file, error.what());
  }
}

void JsonNode::wrong(std::string_view message) const {
  std::string value = json_->dump();
  if (value.size() > 120) value = value.substr(0, value.find_last_of(" ,", 100)) + " …";
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
