#include "runtime/config.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <concepts>
#include <set>

#include "runtime/edit_distance.h"
#include "runtime/files.h"
#include "runtime/utf8.h"

namespace notellm {
namespace {

// ---- scalars -----------------------------------------------------------------------------------------------------

// Not in quotes: quoted, "3" and "true" are texts.
bool is_plain(const YAML::Node& node) { return node.IsScalar() && node.Tag() != "!"; }

std::string bounds_text(Bounds bounds) {
  const bool low = std::isfinite(bounds.low), high = std::isfinite(bounds.high);
  if (low && high) return fmt::format(", {} to {}", bounds.low, bounds.high);
  if (low) return fmt::format(", at least {}", bounds.low);
  return high ? fmt::format(", at most {}", bounds.high) : "";
}

template <class T>
std::optional<T> parse_number(const YAML::Node& node) {
  if (!is_plain(node)) return std::nullopt;
  std::string_view text = node.Scalar();
  if (text.starts_with('+')) text.remove_prefix(1);
  if constexpr (std::floating_point<T>) {
    if (text.find_first_not_of("0123456789+-.eE") != text.npos) return std::nullopt;  // from_chars knows nan and inf
  }
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

template <class T>
T number_in(const YAML::Node& node, Bounds bounds, const std::string& type) {
  const std::optional<T> value = parse_number<T>(node);
  if (!value || !(bounds.low <= static_cast<double>(*value) && static_cast<double>(*value) <= bounds.high)) throw type;
  return *value;
}

template <class T>
std::string print_number(T value) {
  return fmt::format("{}", value);  // the shortest text that reads back to the same bits
}

std::string emit(const auto& value) {
  YAML::Emitter out;
  out << YAML::Flow << value;
  return out.c_str();
}

// ---- names -------------------------------------------------------------------------------------------------------

std::string_view last_part(std::string_view path) { return path.substr(path.rfind('.') + 1); }

// ---- reading -----------------------------------------------------------------------------------------------------

class Reader {
 public:
  explicit Reader(Fields& fields) {
    for (Fields::Field& field : fields.all()) {
      fields_[field.path] = &field;
      for (size_t dot = field.path.find('.'); dot != std::string::npos; dot = field.path.find('.', dot + 1))
        sections_.insert(field.path.substr(0, dot));
    }
  }

  void text(const std::string& text, const std::string& name) {
    source_ = name;
    const YAML::Node root = load(text);
    if (root.IsNull()) return;
    if (!root.IsMap()) fail(ErrorKind::usage, "{}: must be lines of 'key: value', not a {}", at(root), kind_of(root));
    section("", root);
  }

  void override(const std::string& assignment) {
    source_ = "--set " + assignment;
    in_file_ = false;
    const size_t equals = assignment.find('=');
    if (equals == std::string::npos || equals == 0)
      fail(ErrorKind::usage, "'{}': an override is written section.key=value", source_);
    value(assignment.substr(0, equals), load(assignment.substr(equals + 1)));
  }

 private:
  YAML::Node load(const std::string& text) const {
    try {
      const std::vector<YAML::Node> documents = YAML::LoadAll(text);
      if (documents.size() > 1)
        fail(ErrorKind::usage, "{}: has {} YAML documents, must be one", source_, documents.size());
      return documents.empty() ? YAML::Node() : documents[0];
    } catch (const YAML::Exception& error) {
      fail(ErrorKind::usage, "{}: this is not YAML: {}", at(error.mark), error.msg);
    }
  }

  std::string at(const YAML::Mark& mark) const {
    return in_file_ && !mark.is_null() ? fmt::format("{}:{}", source_, mark.line + 1) : source_;
  }
  std::string at(const YAML::Node& node) const { return at(node.Mark()); }

  static std::string kind_of(const YAML::Node& node) {
    return node.IsMap() ? "section" : node.IsSequence() ? "list" : node.IsNull() ? "missing value" : "single value";
  }
  static std::string shown(const YAML::Node& node) {
    return node.IsScalar() ? "'" + node.Scalar() + "'" : "a " + kind_of(node);
  }

  void section(const std::string& path, const YAML::Node& node) {
    std::map<std::string, int> line_of;
    for (const auto& entry : node) {
      if (!entry.first.IsScalar()) fail(ErrorKind::usage, "{}: a key must be a single word", at(entry.first));
      const std::string& key = entry.first.Scalar();
      const std::string full = path.empty() ? key : path + "." + key;
      const auto [first, fresh] = line_of.emplace(key, entry.first.Mark().line + 1);
      if (!fresh)
        fail(ErrorKind::usage, "{}: {} is given twice, first in line {}; keep one", at(entry.first), full,
             first->second);
      if (key.find('.') != key.npos) fail(ErrorKind::usage, "{}: '{}': {}", at(entry.first), full, nesting_hint(key));
      value(full, entry.second, entry.first);
    }
  }

  static std::string nesting_hint(const std::string& key) {
    const size_t dot = key.find('.');
    return fmt::format("write '{}:' and below it, indented, '{}: …'", key.substr(0, dot), key.substr(dot + 1));
  }

  // `key` is where an unknown key is reported.
  void value(const std::string& path, const YAML::Node& node, const YAML::Node& key) {
    if (const auto field = fields_.find(path); field != fields_.end()) {
      try {
        field->second->parse(node);
        field->second->given = true;
      } catch (const std::string& must_be) {
        fail(ErrorKind::usage, "{}: {} is {}, but must be: {}", at(node.IsNull() ? key : node), path, shown(node),
             must_be);
      }
    } else if (sections_.contains(path)) {
      if (node.IsNull()) return;  // a section whose keys are all commented out
      if (!node.IsMap())
        fail(ErrorKind::usage, "{}: {} is {}, but must be a section, with keys such as {}", at(node), path, shown(node),
             first_key(path));
      section(path, node);
    } else {
      fail(ErrorKind::usage, "{}: unknown key '{}'; the nearest known key is '{}'", at(key), path, nearest(path));
    }
  }
  void value(const std::string& path, const YAML::Node& node) { value(path, node, node); }

  std::string first_key(const std::string& section) const { return fields_.lower_bound(section + ".")->first; }

  // By the whole path, or, for a key in the wrong section, by its last part.
  std::string nearest(const std::string& path) const {
    std::string best;
    int best_distance = std::numeric_limits<int>::max();
    const auto consider = [&](const std::string& known) {
      const int d = std::min(edit_distance(path, known), edit_distance(last_part(path), last_part(known)) + 2);
      if (d < best_distance) best = known, best_distance = d;
    };
    for (const std::string& known : sections_) consider(known);
    for (const auto& [known, field] : fields_) consider(known);
    return best;
  }

  std::map<std::string, Fields::Field*> fields_;
  std::set<std::string> sections_;
  std::string source_;
  bool in_file_ = true;
};

}  // namespace

// ---- the fields --------------------------------------------------------------------------------------------------

void Fields::push(std::string_view key, std::string_view help, std::string type,
                  std::function<void(const YAML::Node&)> parse, std::function<std::string()> print) {
  std::string path = prefix_ + std::string(key);
  for (const Field& field : fields_) NOTELLM_CHECK(field.path != path, "the key {} is described twice", path);
  fields_.push_back({std::move(path), std::string(help), std::move(type), std::move(parse), std::move(print), false});
}

void Fields::add(std::string_view key, std::string_view help, int& value, Bounds bounds) {
  const std::string type = "integer" + bounds_text(bounds);
  push(
      key, help, type, [&value, bounds, type](const YAML::Node& node) { value = number_in<int>(node, bounds, type); },
      [&value] { return print_number(value); });
}

void Fields::add(std::string_view key, std::string_view help, int64_t& value, Bounds bounds) {
  const std::string type = "integer" + bounds_text(bounds);
  push(
      key, help, type,
      [&value, bounds, type](const YAML::Node& node) { value = number_in<int64_t>(node, bounds, type); },
      [&value] { return print_number(value); });
}

void Fields::add(std::string_view key, std::string_view help, float& value, Bounds bounds) {
  const std::string type = "number" + bounds_text(bounds);
  push(
      key, help, type, [&value, bounds, type](const YAML::Node& node) { value = number_in<float>(node, bounds, type); },
      [&value] { return print_number(value); });
}

void Fields::add(std::string_view key, std::string_view help, double& value, Bounds bounds) {
  const std::string type = "number" + bounds_text(bounds);
  push(
      key, help, type,
      [&value, bounds, type](const YAML::Node& node) { value = number_in<double>(node, bounds, type); },
      [&value] { return print_number(value); });
}

void Fields::add(std::string_view key, std::string_view help, bool& value) {
  const std::string type = "true or false";
  push(
      key, help, type,
      [&value, type](const YAML::Node& node) {
        if (!is_plain(node) || (node.Scalar() != "true" && node.Scalar() != "false")) throw type;
        value = node.Scalar() == "true";
      },
      [&value] { return std::string(value ? "true" : "false"); });
}

void Fields::add(std::string_view key, std::string_view help, std::string& value) {
  push(
      key, help, "text",
      [&value](const YAML::Node& node) {
        if (!node.IsScalar()) throw std::string("text (no text at all is written \"\")");
        value = node.Scalar();
      },
      [&value] { return emit(value); });
}

void Fields::add(std::string_view key, std::string_view help, std::vector<std::string>& value) {
  push(
      key, help, "list of texts",
      [&value](const YAML::Node& node) {
        std::vector<std::string> list;
        for (const YAML::Node& item : node) {
          if (!item.IsScalar()) break;
          list.push_back(item.Scalar());
        }
        if (!node.IsSequence() || list.size() != node.size()) throw std::string("list of texts, such as [one, two]");
        value = std::move(list);
      },
      [&value] { return emit(value); });
}

void Fields::add(std::string_view key, std::string_view help, std::vector<int>& value, Bounds bounds) {
  const std::string type = "list of integers" + bounds_text(bounds);
  push(
      key, help, type,
      [&value, bounds, type](const YAML::Node& node) {
        if (!node.IsSequence()) throw type + ", such as [1, 2]";
        std::vector<int> list;
        for (const YAML::Node& item : node) list.push_back(number_in<int>(item, bounds, type));
        value = std::move(list);
      },
      [&value] { return emit(value); });
}

void Fields::push_choice(std::string_view key, std::string_view help, std::vector<std::string> names,
                         std::function<void(int)> set, std::function<int()> get) {
  const std::string type = fmt::format("{}", fmt::join(names, " | "));
  push(
      key, help, type,
      [names, set, type](const YAML::Node& node) {
        const auto name = std::ranges::find(names, node.IsScalar() ? node.Scalar() : "");
        if (name == names.end()) throw type;
        set(static_cast<int>(name - names.begin()));
      },
      [names, get] { return emit(names.at(static_cast<size_t>(get()))); });
}

void read_config(Fields& fields, const std::string& path, const std::vector<std::string>& overrides) {
  if (path.empty()) return read_config_text(fields, "", "", overrides);
  if (!std::filesystem::exists(path))
    fail(ErrorKind::io, "there is no configuration file {}: check the path; configs/ has complete examples", path);
  read_config_text(fields, read_file(path), path, overrides);
}

void read_config_text(Fields& fields, const std::string& text, const std::string& name,
                      const std::vector<std::string>& overrides) {
  Reader reader(fields);
  reader.text(text, name);
  for (const std::string& assignment : overrides) reader.override(assignment);
}

std::string print_config(const Fields& fields) {
  std::string text, open;  // open: the section of the last line, "a.b."
  for (const Fields::Field& field : fields.all()) {
    size_t begin = 0, depth = 0;
    bool same = true;
    for (size_t dot; (dot = field.path.find('.', begin)) != std::string::npos; begin = dot + 1, ++depth) {
      const std::string section = field.path.substr(0, dot + 1);
      same = same && open.starts_with(section);
      if (!same) text += fmt::format("{:{}}{}:\n", "", 2 * depth, field.path.substr(begin, dot - begin));
    }
    open = field.path.substr(0, begin);
    text += fmt::format("{:{}}{}: {}\n", "", 2 * depth, field.path.substr(begin), field.print());
  }
  return text;
}

std::string describe_config(const Fields& fields) {
  std::vector<std::array<std::string, 4>> rows = {{"key", "default", "type", ""}};
  for (const Fields::Field& field : fields.all()) rows.push_back({field.path, field.print(), field.type, field.help});
  std::array<size_t, 3> widths = {};
  for (const auto& row : rows)
    for (size_t c = 0; c < widths.size(); ++c) widths[c] = std::max(widths[c], count_characters(row[c]));
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t c = 0; c < widths.size(); ++c)
      line += row[c] + std::string(widths[c] + 2 - count_characters(row[c]), ' ');
    line += row[3];
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

}  // namespace notellm
