// The PTX that nvcc put into an executable.
#pragma once

#include <string>
#include <vector>

namespace softgpu {

// The PTX texts for a GPU of this architecture (80, 90) among what __cudaRegisterFatBinary was given: of each fat
// binary the newest that is not newer than the GPU. Usually one; several where nvcc linked device code (-rdc). Empty:
// nothing for this GPU. Throws std::runtime_error: not a fat binary, or compressed in an unknown way.
std::vector<std::string> ptx_of(const void* wrapper, int arch);

}  // namespace softgpu
