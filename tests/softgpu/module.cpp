// PTX text to kernels that can be launched.
#include <cstring>
#include <stdexcept>

#include "tests/softgpu/engine.h"
#include "tests/softgpu/program.h"

namespace softgpu {

std::shared_ptr<Module> load_module(const std::string& ptx) {
  auto module = std::make_shared<Module>();
  module->parsed = parse_ptx(ptx);
  for (const ParsedVariable& v : module->parsed.variables) {
    if (v.space == "shared") continue;
    if (v.external) throw std::runtime_error("softgpu: variable " + v.name + " of another module");
    const uint64_t address = allocate(v.bytes, "variable " + v.name);
    if (address == 0) throw std::runtime_error("softgpu: no memory for variable " + v.name);
    std::vector<uint8_t> bytes = v.initial;
    bytes.resize(v.bytes);  // what has no initial value is zero
    std::memcpy(host_view(address), bytes.data(), bytes.size());
    mark_written(address, bytes.size());
    module->variables.push_back({v.name, address, v.bytes});
  }
  for (const ParsedKernel& kernel : module->parsed.kernels) module->programs.push_back(decode(kernel, *module));
  return module;
}

const Kernel* find_kernel(const Module& module, const std::string& name) {
  for (const auto& program : module.programs)
    if (program->kernel.name == name) return &program->kernel;
  return nullptr;
}

uint64_t find_variable(const Module& module, const std::string& name, size_t& bytes) {
  for (const auto& v : module.variables)
    if (v.name == name) {
      bytes = v.bytes;
      return v.address;
    }
  return 0;
}

}  // namespace softgpu
