// SOFTGPU_REPORT=FILE: what the kernels did, as JSON, at the end of the process; under MPI each rank has its own,
// FILE.RANK. `softgpu report` makes a table of it.
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "tests/softgpu/engine.h"

namespace softgpu {
namespace {

struct Column {
  const char* name;
  uint64_t Counters::*value;
};
constexpr Column columns[] = {
    {"launches", &Counters::launches},
    {"threads", &Counters::threads},
    {"instructions", &Counters::instructions},
    {"mma", &Counters::mma},
    {"ldmatrix", &Counters::ldmatrix},
    {"shared", &Counters::shared},
    {"global", &Counters::global},
    {"control", &Counters::control},
    {"sync", &Counters::sync},
    {"special", &Counters::special},
    {"other", &Counters::other},
    {"thread_instructions", &Counters::thread_instructions},
    {"mma_flops", &Counters::mma_flops},
    {"product_flops", &Counters::product_flops},
    {"global_read_bytes", &Counters::global_read_bytes},
    {"global_write_bytes", &Counters::global_write_bytes},
    {"global_read_sectors", &Counters::global_read_sectors},
    {"global_write_sectors", &Counters::global_write_sectors},
    {"global_fetched_sectors", &Counters::global_fetched_sectors},
    {"shared_requests", &Counters::shared_requests},
    {"shared_conflicts", &Counters::shared_conflicts},
    {"loop_instructions", &Counters::loop_instructions},
    {"loop_mma", &Counters::loop_mma},
    {"loop_shared_conflicts", &Counters::loop_shared_conflicts},
};

using Kernels = std::vector<std::pair<std::string, Counters>>;

void write_json(std::FILE* file, const Kernels& kernels) {
  std::fputs("{", file);
  const char* between = "\n";
  for (const auto& [name, counters] : kernels) {
    std::fprintf(file, "%s  \"%s\": {", between, name.c_str());
    for (const Column& column : columns)
      std::fprintf(file, "%s\"%s\": %llu", &column == columns ? "" : ", ", column.name,
                   static_cast<unsigned long long>(counters.*column.value));
    std::fputs("}", file);
    between = ",\n";
  }
  std::fputs("\n}\n", file);
}

void report_counters(int, void*) {
  const char* name = std::getenv("SOFTGPU_REPORT");
  if (!name) return;
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  const std::string path = rank ? std::string(name) + "." + rank : name;
  if (std::FILE* file = std::fopen(path.c_str(), "w")) {
    write_json(file, all_counters());
    std::fclose(file);
  } else {
    std::fprintf(stderr, "softgpu: cannot write the report %s\n", path.c_str());
  }
}

// Handlers run in the opposite order of registration: this one after the findings' own, and so before it.
__attribute__((constructor(200))) void register_report() { on_exit(report_counters, nullptr); }

}  // namespace

}  // namespace softgpu
