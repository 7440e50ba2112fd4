// Any bytes as a safetensors file: an Error, or tensors every byte of which can be read.
#include <sys/mman.h>
#include <unistd.h>

#include <string>

#include "runtime/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace notellm;
  const int descriptor = memfd_create("input", MFD_CLOEXEC);
  if (descriptor < 0 || write(descriptor, data, size) != static_cast<ssize_t>(size)) abort();
  static volatile unsigned sum;
  for (const auto unaligned : {SafetensorsFile::Unaligned::copied, SafetensorsFile::Unaligned::left}) {
    try {
      const SafetensorsFile file("/proc/self/fd/" + std::to_string(descriptor), unaligned);
      for (const NamedTensor& t : file.tensors()) {
        const auto* bytes = static_cast<const unsigned char*>(t.tensor.data);
        for (int64_t i = 0; i < t.tensor.bytes(); ++i) sum = sum + bytes[i];
        if (file.at(t.name).data != t.tensor.data) abort();
      }
    } catch (const Error&) {
    }
  }
  close(descriptor);
  return 0;
}
