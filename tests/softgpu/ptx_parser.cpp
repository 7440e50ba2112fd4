#include "tests/softgpu/ptx_parser.h"

#include <cctype>
#include <cstring>
#include <filesystem>
#include <stdexcept>

namespace softgpu {
namespace {

struct Token {
  std::string text;
  int line;
};

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
}

// Words (with their dots: "ld.global.v4.f32", ".reg"), strings in quotes, single characters. Comments are left out.
std::vector<Token> tokenize(const std::string& text) {
  std::vector<Token> tokens;
  int line = 1;
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (c == '\0') break;
    if (c == '\n')
      ++line, ++i;
    else if (std::isspace(static_cast<unsigned char>(c)))
      ++i;
    else if (text.compare(i, 2, "//") == 0)
      i = std::min(text.find('\n', i), text.size());
    else if (text.compare(i, 2, "/*") == 0) {
      const size_t end = std::min(text.find("*/", i), text.size() - 2) + 2;
      for (; i < end; ++i) line += text[i] == '\n';
    } else if (c == '"') {
      const size_t end = text.find('"', i + 1);
      tokens.push_back({text.substr(i, end + 1 - i), line});
      i = end + 1;
    } else if (is_word(c)) {
      size_t end = i;
      while (end < text.size() && is_word(text[end])) ++end;
      tokens.push_back({text.substr(i, end - i), line});
      i = end;
    } else {
      tokens.push_back({std::string(1, c), line});
      ++i;
    }
  }
  return tokens;
}

std::vector<std::string> split_dots(const std::string& word) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= word.size();) {
    const size_t dot = std::min(word.find('.', at), word.size());
    if (dot > at) parts.push_back(word.substr(at, dot - at));
    at = dot + 1;
  }
  return parts;
}

class Parser {
 public:
  explicit Parser(const std::string& text) : tokens_(tokenize(text)) {}

  ParsedModule module() {
    while (!at_end()) statement();
    return std::move(module_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    const Token& token = tokens_[std::min(at_, tokens_.size() - 1)];
    throw std::runtime_error("PTX line " + std::to_string(token.line) + ": " + what + " near \"" + token.text + "\"");
  }
  bool at_end() const { return at_ >= tokens_.size(); }
  const std::string& peek() const {
    if (at_end()) fail("text ends too early");
    return tokens_[at_].text;
  }
  std::string next() {
    std::string text = peek();
    ++at_;
    return text;
  }
  bool accept(const std::string& text) {
    if (at_end() || tokens_[at_].text != text) return false;
    ++at_;
    return true;
  }
  void expect(const std::string& text) {
    if (!accept(text)) fail("expected \"" + text + "\"");
  }
  void skip_to(const std::string& text) {
    while (next() != text) {
    }
  }
  int64_t integer() {
    const bool minus = accept("-");
    const std::string text = next();
    if (!std::isdigit(static_cast<unsigned char>(text[0]))) fail("expected a number, not " + text);
    size_t used = 0;
    const auto value = static_cast<int64_t>(std::stoull(text, &used, 0));
    if (text.substr(used) != "" && text.substr(used) != "U") fail("a number of an unknown form: " + text);
    return minus ? -value : value;
  }

  // At the level of the module.
  void statement() {
    const std::string word = peek();
    if (word == ".version" || word == ".address_size")
      at_ += 2;
    else if (word == ".target") {
      at_ += 2;
      while (accept(",")) ++at_;
    } else if (word == ".file")
      file();
    else if (word == ".section") {
      skip_to("{");
      skip_to("}");
    } else if (word == ".visible" || word == ".weak" || word == ".extern" || word == ".common") {
      ++at_;
      external_ = word == ".extern";
      return;
    } else if (word == ".entry")
      kernel();
    else if (word == ".func")
      fail("device functions that are called (make them __forceinline__) are not known");
    else if (word == ".global" || word == ".const" || word == ".shared")
      module_.variables.push_back(variable());
    else if (word == ".pragma")
      skip_to(";");
    else
      fail("unknown statement");
    external_ = false;
  }

  void file() {
    expect(".file");
    const int number = static_cast<int>(integer());
    std::string name = next();
    module_.files[number] = std::filesystem::path(name.substr(1, name.size() - 2)).lexically_normal();
    while (accept(",")) ++at_;
  }

  // .shared .align 16 .b8 name[1024] = {1, 2, …};
  ParsedVariable variable() {
    ParsedVariable v;
    v.space = next().substr(1);
    v.external = external_;
    uint32_t size = 0;
    for (; peek()[0] == '.';) {
      const std::string word = next();
      if (word == ".align")
        v.alignment = static_cast<uint32_t>(integer());
      else if (word == ".attribute")
        skip_to(")");
      else
        size = bytes_of_type(word.substr(1));
    }
    v.name = next();
    v.bytes = size;
    v.alignment = std::max(v.alignment, size);
    while (accept("[")) {
      if (accept("]"))
        v.bytes = 0;
      else {
        v.bytes *= static_cast<uint64_t>(integer());
        expect("]");
      }
    }
    if (accept("=")) initial_value(v, size);
    expect(";");
    return v;
  }
  void initial_value(ParsedVariable& v, uint32_t size) {
    const bool list = accept("{");
    do {
      const Text value = operand();
      if (value.kind == Text::Kind::name) fail("addresses as initial values are not known");
      for (uint32_t byte = 0; byte < size; ++byte) v.initial.push_back(static_cast<uint8_t>(value.bits >> 8 * byte));
    } while (list && accept(","));
    if (list) expect("}");
    v.initial.resize(v.bytes);
  }

  void kernel() {
    expect(".entry");
    ParsedKernel k;
    k.name = next();
    if (accept("(")) {
      while (!accept(")")) {
        expect(".param");
        ParsedKernel::Parameter p;
        while (peek()[0] == '.') {
          const std::string word = next();
          if (word == ".align")
            p.alignment = static_cast<uint32_t>(integer());
          else if (word == ".ptr") {
            while (peek() == ".global" || peek() == ".const" || peek() == ".shared") ++at_;
            if (accept(".align")) integer();
          } else
            p.bytes = bytes_of_type(word.substr(1));
        }
        p.alignment = std::max(p.alignment, p.bytes);
        p.name = next();
        if (accept("[")) {
          p.bytes *= static_cast<uint32_t>(integer());
          expect("]");
        }
        k.parameters.push_back(p);
        accept(",");
      }
    }
    while (peek() != "{") {
      const std::string word = next();
      if (word == ".maxntid" || word == ".reqntid") {
        k.max_threads = static_cast<uint32_t>(integer());
        while (accept(",")) k.max_threads *= static_cast<uint32_t>(integer());
      } else if (word == ".minnctapersm" || word == ".maxnreg")
        integer();
      else
        fail("unknown directive " + word);
    }
    expect("{");
    kernel_ = &k;
    source_ = {};
    body();
    module_.kernels.push_back(std::move(k));
  }

  // Scopes within a body ({ … } of inline assembly) have registers of their own: their names get a number.
  void body() {
    scopes_.emplace_back();
    while (!accept("}")) {
      const std::string& word = peek();
      if (word == "{") {
        ++at_;
        body();
      } else if (word == ".reg")
        registers();
      else if (word == ".loc")
        location();
      else if (word == ".shared" || word == ".local")
        kernel_->variables.push_back(variable());
      else if (word == ".pragma")
        skip_to(";");
      else if (at_ + 1 < tokens_.size() && tokens_[at_ + 1].text == ":" && tokens_[at_ + 2].text != ":") {
        if (!kernel_->labels.emplace(word, kernel_->instructions.size()).second) fail("a label that is there twice");
        at_ += 2;
      } else
        instruction();
    }
    scopes_.pop_back();
  }

  void registers() {
    expect(".reg");
    std::string type = next();
    do {
      std::string name = next();
      if (accept("<")) {
        integer();
        expect(">");
        kernel_->registers[name] = type;
      } else {
        std::string unique = scopes_.size() > 1 ? name + "#" + std::to_string(++renamed_) : name;
        scopes_.back()[name] = unique;
        kernel_->registers[unique] = type;
      }
    } while (accept(","));
    expect(";");
  }

  // .loc file line column [, function_name label, inlined_at file line column]
  void location() {
    expect(".loc");
    SourceLine source;
    source.file = static_cast<int>(integer());
    source.line = static_cast<int>(integer());
    integer();
    while (accept(",")) {
      const std::string word = next();
      if (word == "function_name") {
        next();
        if (accept("+")) integer();
      } else if (word == "inlined_at") {
        source.caller_file = static_cast<int>(integer());
        source.caller_line = static_cast<int>(integer());
        integer();
      } else
        fail("unknown part of .loc");
    }
    if (source.line != 0) source_ = source;  // line 0: code of no line; the one before is the better guess
  }

  void instruction() {
    ParsedInstruction i;
    i.line = tokens_[at_].line;
    i.source = source_;
    if (accept("@")) {
      i.negated = accept("!");
      i.predicate = in_scope(next());
    }
    std::vector<std::string> words = split_dots(next());
    while (accept(":")) {  // "cp.async.ca.shared.global.L2::128B"
      expect(":");
      const std::vector<std::string> more = split_dots(next());
      words.back() += "::" + more.at(0);
      words.insert(words.end(), more.begin() + 1, more.end());
    }
    i.opcode = words[0];
    i.flags.assign(words.begin() + 1, words.end());
    while (!accept(";")) {
      i.operands.push_back(operand());
      if (accept("|")) {
        Text pair;
        pair.kind = Text::Kind::pair;
        pair.parts = {i.operands.back(), operand()};
        i.operands.back() = pair;
      }
      if (!accept(",") && peek() != ";") fail("unexpected end of an operand");
    }
    kernel_->instructions.push_back(std::move(i));
  }

  std::string in_scope(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
      if (auto found = scope->find(name); found != scope->end()) return found->second;
    return name;
  }
  bool is_register(const std::string& name) const { return name[0] == '%' || in_scope_declared(name); }
  bool in_scope_declared(const std::string& name) const {
    for (const auto& scope : scopes_)
      if (scope.count(name)) return true;
    return false;
  }

  Text operand() {
    Text t;
    if (accept("[")) {
      t.kind = Text::Kind::address;
      if (std::isdigit(static_cast<unsigned char>(peek()[0])))
        t.bits = static_cast<uint64_t>(integer());
      else {
        const std::string base = next();
        t.base_is_reg = is_register(base);
        t.name = t.base_is_reg ? in_scope(base) : base;
        if (accept("+"))
          t.bits = static_cast<uint64_t>(integer());
        else if (peek() == "-")
          t.bits = static_cast<uint64_t>(integer());
      }
      expect("]");
      return t;
    }
    if (accept("{")) {
      t.kind = Text::Kind::list;
      do t.parts.push_back(operand());
      while (accept(","));
      expect("}");
      return t;
    }
    if (peek() == "-" || std::isdigit(static_cast<unsigned char>(peek()[0]))) return number();
    t.negated = accept("!");
    const std::string word = next();
    t.kind = is_register(word) ? Text::Kind::reg : Text::Kind::name;
    t.name = t.kind == Text::Kind::reg ? in_scope(word) : word;
    return t;
  }

  Text number() {
    Text t;
    const std::string& word = peek();
    if (word.size() == 10 && (word[1] == 'f' || word[1] == 'F') && word[0] == '0') {
      t.kind = Text::Kind::real32;
      t.bits = std::stoull(next().substr(2), nullptr, 16);
    } else if (word.size() == 18 && (word[1] == 'd' || word[1] == 'D') && word[0] == '0') {
      t.kind = Text::Kind::real64;
      t.bits = std::stoull(next().substr(2), nullptr, 16);
    } else {
      t.kind = Text::Kind::integer;
      t.bits = static_cast<uint64_t>(integer());
    }
    return t;
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  bool external_ = false;
  ParsedModule module_;
  ParsedKernel* kernel_ = nullptr;
  SourceLine source_;
  std::vector<std::map<std::string, std::string>> scopes_;
  int renamed_ = 0;
};

}  // namespace

ParsedModule parse_ptx(const std::string& ptx) { return Parser(ptx).module(); }

uint32_t bytes_of_type(const std::string& type) {
  static const std::map<std::string, uint32_t> bytes = {
      {"b8", 1},   {"u8", 1},  {"s8", 1},  {"b16", 2}, {"u16", 2},   {"s16", 2},    {"f16", 2},
      {"bf16", 2}, {"b32", 4}, {"u32", 4}, {"s32", 4}, {"f32", 4},   {"bf16x2", 4}, {"f16x2", 4},
      {"b64", 8},  {"u64", 8}, {"s64", 8}, {"f64", 8}, {"b128", 16}, {"pred", 4}};
  const auto found = bytes.find(type);
  if (found == bytes.end()) throw std::runtime_error("PTX type ." + type + " is not known");
  return found->second;
}

}  // namespace softgpu
