// What is looked at when the process ends, before it is decided whether there were findings.
#pragma once

#include <vector>

namespace softgpu {

// Run in their order when the process ends with status 0. Add to it while libraries are loaded only.
std::vector<void (*)()>& end_checks();

}  // namespace softgpu
