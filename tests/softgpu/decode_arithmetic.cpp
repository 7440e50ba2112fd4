// Integer and float arithmetic, logic, shifts.
#include "tests/softgpu/operations.h"

namespace softgpu {
namespace {

template <class F>
constexpr Handlers integer_unary = {unary<u16, u16, F>,
                                    unary<s16, s16, F>,
                                    unary<u32, u32, F>,
                                    unary<s32, s32, F>,
                                    unary<u64, u64, F>,
                                    unary<s64, s64, F>,
                                    nullptr,
                                    nullptr};
template <class F>
constexpr Handlers integer_binary = {binary<u16, u16, u16, F>,
                                     binary<s16, s16, s16, F>,
                                     binary<u32, u32, u32, F>,
                                     binary<s32, s32, s32, F>,
                                     binary<u64, u64, u64, F>,
                                     binary<s64, s64, s64, F>,
                                     nullptr,
                                     nullptr};
template <class F>
constexpr Handlers shift = {binary<u16, u16, u32, F>,
                            binary<s16, s16, u32, F>,
                            binary<u32, u32, u32, F>,
                            binary<s32, s32, u32, F>,
                            binary<u64, u64, u32, F>,
                            binary<s64, s64, u32, F>,
                            nullptr,
                            nullptr};
template <class F>
constexpr Handlers integer_ternary = {ternary<u16, u16, u16, u16, F>,
                                      ternary<s16, s16, s16, s16, F>,
                                      ternary<u32, u32, u32, u32, F>,
                                      ternary<s32, s32, s32, s32, F>,
                                      ternary<u64, u64, u64, u64, F>,
                                      ternary<s64, s64, s64, s64, F>,
                                      nullptr,
                                      nullptr};

constexpr Handlers wide_products = {binary<u32, u16, u16, MultiplyWide<u32>>,
                                    binary<s32, s16, s16, MultiplyWide<s32>>,
                                    binary<u64, u32, u32, MultiplyWide<u64>>,
                                    binary<s64, s32, s32, MultiplyWide<s64>>,
                                    nullptr,
                                    nullptr,
                                    nullptr,
                                    nullptr};
constexpr Handlers wide_sums = {ternary<u32, u16, u16, u32, MultiplyWideAdd<u32>>,
                                ternary<s32, s16, s16, s32, MultiplyWideAdd<s32>>,
                                ternary<u64, u32, u32, u64, MultiplyWideAdd<u64>>,
                                ternary<s64, s32, s32, s64, MultiplyWideAdd<s64>>,
                                nullptr,
                                nullptr,
                                nullptr,
                                nullptr};
template <class F>
Handler float_binary(const ParsedInstruction& from) {
  const bool ftz = has_flag(from, "ftz"), sat = has_flag(from, "sat");
  if (from.flags.back() == "f64") return ftz || sat ? nullptr : Handler(binary<double, double, double, F>);
  if (ftz && sat) return nullptr;
  return ftz   ? binary<float, float, float, Flushed<F>>
         : sat ? binary<float, float, float, Saturated<F>>
               : binary<float, float, float, F>;
}
template <class F>
Handler float_unary(const ParsedInstruction& from) {
  if (from.flags.back() == "f64") return has_flag(from, "ftz") ? nullptr : Handler(unary<double, double, F>);
  return has_flag(from, "ftz") ? unary<float, float, Flushed<F>> : unary<float, float, F>;
}
Handler float_fma(const ParsedInstruction& from) {
  const bool ftz = has_flag(from, "ftz"), sat = has_flag(from, "sat");
  const bool down = has_flag(from, "rm"), up = has_flag(from, "rp"), zero = has_flag(from, "rz");
  if (down || up || zero) {
    if (ftz || sat || from.flags.back() != "f32") return nullptr;
    return down ? ternary<float, float, float, float, DirectedFma<Toward::minus_infinity>>
           : up ? ternary<float, float, float, float, DirectedFma<Toward::plus_infinity>>
                : ternary<float, float, float, float, DirectedFma<Toward::zero>>;
  }
  if (from.flags.back() == "f64") return ftz || sat ? nullptr : Handler(ternary<double, double, double, double, Fma>);
  if (ftz && sat) return nullptr;
  return ftz   ? ternary<float, float, float, float, Flushed<Fma>>
         : sat ? ternary<float, float, float, float, Saturated<Fma>>
               : ternary<float, float, float, float, Fma>;
}

bool decode_float(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  const std::string& op = from.opcode;
  const std::string& type = from.flags.back();
  const bool directed = has_flag(from, "rm") || has_flag(from, "rp") || has_flag(from, "rz");
  if (!only(from, {"rn", "ftz", "sat", "approx", "full", "rm", "rp", "rz"}) || (directed && op != "fma")) return false;
  size_t count = 2;
  if (op == "add")
    to.run = float_binary<Add>(from);
  else if (op == "sub")
    to.run = float_binary<Subtract>(from);
  else if (op == "mul")
    to.run = float_binary<Multiply>(from);
  else if (op == "div")
    to.run = float_binary<Divide>(from);
  else if (op == "min")
    to.run = float_binary<Minimum>(from);
  else if (op == "max")
    to.run = float_binary<Maximum>(from);
  else if (op == "fma" || op == "mad")
    to.run = float_fma(from), count = 3;
  else {
    count = 1;
    if (op == "neg")
      to.run = float_unary<Negate>(from);
    else if (op == "abs")
      to.run = float_unary<Absolute>(from);
    else if (op == "rcp" && type == "f64" && has_flag(from, "ftz"))
      to.run = unary<double, double, CoarseReciprocal>;
    else if (op == "rcp")
      to.run = float_unary<Reciprocal>(from);
    else if (op == "sqrt")
      to.run = float_unary<Root>(from);
    else if (op == "rsqrt")
      to.run = float_unary<ReciprocalRoot>(from);
    else if (type == "f32" && op == "ex2")
      to.run = float_unary<Exp2>(from);
    else if (type == "f32" && op == "lg2")
      to.run = float_unary<Log2>(from);
    else if (type == "f32" && op == "sin")
      to.run = float_unary<Sine>(from);
    else if (type == "f32" && op == "cos")
      to.run = float_unary<Cosine>(from);
    else if (type == "f32" && op == "tanh")
      to.run = float_unary<Tanh>(from);
    else
      return false;
    if (op != "neg" && op != "abs") to.kind = InstructionClass::special;
  }
  if (op == "div") to.kind = InstructionClass::special;
  if (!to.run) return false;
  operands(decoder, from, to, type, count);
  return true;
}

bool decode_product(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  const std::string& type = from.flags.back();
  const bool adds = from.opcode == "mad";
  if (from.flags.size() != 2 || !only(from, {"lo", "hi", "wide"})) return false;
  if (from.operands.size() != (adds ? 4u : 3u)) return false;
  if (has_flag(from, "wide")) {
    to.run = (adds ? wide_sums : wide_products).of(type);
    if (!to.run) return false;
    to.d = decoder.destination(from.operands.at(0));
    to.a = decoder.typed(from.operands.at(1), type);
    to.b = decoder.typed(from.operands.at(2), type);
    if (adds) to.c = decoder.operand(from.operands.at(3), bytes_of_type(type) == 4 ? 8 : 4);
    return true;
  }
  const bool high = has_flag(from, "hi");
  if (adds)
    to.run = (high ? integer_ternary<MultiplyHighAdd> : integer_ternary<MultiplyAdd>).of(type);
  else
    to.run = (high ? integer_binary<MultiplyHigh> : integer_binary<Multiply>).of(type);
  if (!to.run) return false;
  operands(decoder, from, to, type, adds ? 3 : 2);
  return true;
}

bool decode_integer(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  const std::string& op = from.opcode;
  const std::string& type = from.flags.back();
  if (op == "mul" || op == "mad") return decode_product(decoder, from, to);
  static const std::map<std::string, const Handlers*> two = {
      {"add", &integer_binary<Add>},       {"sub", &integer_binary<Subtract>}, {"div", &integer_binary<Divide>},
      {"rem", &integer_binary<Remainder>}, {"min", &integer_binary<Minimum>},  {"max", &integer_binary<Maximum>},
      {"and", &integer_binary<And>},       {"or", &integer_binary<Or>},        {"xor", &integer_binary<Xor>}};
  static const std::map<std::string, const Handlers*> one = {
      {"not", &integer_unary<Not>}, {"neg", &integer_unary<Negate>}, {"abs", &integer_unary<Absolute>}};
  if (!only(from, {})) return false;
  if (const auto found = two.find(op); found != two.end()) {
    to.run = type == "pred" ? found->second->of("b32") : found->second->of(type);
    if (!to.run) return false;
    operands(decoder, from, to, type, 2);
    return true;
  }
  if (const auto found = one.find(op); found != one.end()) {
    to.run = type == "pred" ? found->second->of("b32") : found->second->of(type);
    if (!to.run) return false;
    operands(decoder, from, to, type, 1);
    return true;
  }
  if (op == "shl" || op == "shr") {
    to.run = (op == "shl" ? shift<ShiftLeft> : shift<ShiftRight>).of(type);
    to.d = decoder.destination(from.operands.at(0));
    to.a = decoder.typed(from.operands.at(1), type);
    to.b = decoder.operand(from.operands.at(2), 4);
    return to.run != nullptr && from.operands.size() == 3;
  }
  return false;
}

}  // namespace

bool decode_arithmetic(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  if (from.flags.empty()) return false;
  const std::string& type = from.flags.back();
  return type == "f32" || type == "f64" ? decode_float(decoder, from, to) : decode_integer(decoder, from, to);
}

}  // namespace softgpu
