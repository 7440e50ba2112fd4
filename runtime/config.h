// One description of a configuration struct gives its parser, its printer and its help.
//
// A config struct has a member `void fields(Fields& f)`, which names each key once:
//     f.add("dim", "hidden size", dim, at_least(1));
//     f.section("model", model);
// Errors (usage): unknown key (with the nearest known one), wrong type, value out of range, a number that is not
// finite: file, line and key are named.
#pragma once

#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/error.h"

namespace YAML {
class Node;
}

namespace notellm {

// Bounds of a number, both included.
struct Bounds {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
};
inline Bounds at_least(double low) { return {low, std::numeric_limits<double>::infinity()}; }
inline Bounds between(double low, double high) { return {low, high}; }

class Fields {
 public:
  struct Field {
    std::string path;  // "model.dim"
    std::string help;
    std::string type;  // "integer", "number", "text", "true or false", "fp32 | bf16", "list of texts"
    std::function<void(const YAML::Node&)> parse;  // throws std::string: what the value must be
    std::function<std::string()> print;            // as YAML
    bool given = false;                            // read_config found the key
  };

  void add(std::string_view key, std::string_view help, int& value, Bounds bounds = {});
  void add(std::string_view key, std::string_view help, int64_t& value, Bounds bounds = {});
  void add(std::string_view key, std::string_view help, float& value, Bounds bounds = {});
  void add(std::string_view key, std::string_view help, double& value, Bounds bounds = {});
  void add(std::string_view key, std::string_view help, bool& value);
  void add(std::string_view key, std::string_view help, std::string& value);
  void add(std::string_view key, std::string_view help, std::vector<std::string>& value);
  void add(std::string_view key, std::string_view help, std::vector<int>& value, Bounds bounds = {});
  template <class Enum>
  void add(std::string_view key, std::string_view help, Enum& value,
           std::initializer_list<std::pair<const char*, Enum>> choices);
  template <class Section>
  void section(std::string_view key, Section& part) {
    const std::string outer = prefix_;
    prefix_ += std::string(key) + ".";
    part.fields(*this);
    prefix_ = outer;
  }

  const std::vector<Field>& all() const { return fields_; }
  std::vector<Field>& all() { return fields_; }

 private:
  void push(std::string_view key, std::string_view help, std::string type, std::function<void(const YAML::Node&)> parse,
            std::function<std::string()> print);
  void push_choice(std::string_view key, std::string_view help, std::vector<std::string> names,
                   std::function<void(int)> set, std::function<int()> get);
  std::string prefix_;
  std::vector<Field> fields_;
};

// Reads the YAML file at `path` (none when empty), then each override "a.b=value", into the fields.
void read_config(Fields& fields, const std::string& path, const std::vector<std::string>& overrides);
// Reads YAML text, as read_config does; `name` stands for the file in messages.
void read_config_text(Fields& fields, const std::string& text, const std::string& name,
                      const std::vector<std::string>& overrides);
// The effective configuration as YAML: every key with its value.
std::string print_config(const Fields& fields);
// A table: key, default (the present value), type, help.
std::string describe_config(const Fields& fields);

template <class Enum>
void Fields::add(std::string_view key, std::string_view help, Enum& value,
                 std::initializer_list<std::pair<const char*, Enum>> choices) {
  std::vector<std::string> names;
  std::vector<Enum> values;
  for (const auto& [name, choice] : choices) {
    names.emplace_back(name);
    values.push_back(choice);
  }
  push_choice(
      key, help, names, [&value, values](int i) { value = values[i]; },
      [&value, values] {
        for (size_t i = 0; i < values.size(); ++i)
          if (values[i] == value) return static_cast<int>(i);
        return -1;
      });
}

}  // namespace notellm
