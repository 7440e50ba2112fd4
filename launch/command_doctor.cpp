#include <H5public.h>
#include <faiss/Index.h>
#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <oneapi/dnnl/dnnl.hpp>
#include <optional>
#include <sstream>
#define OMPI_SKIP_MPICXX 1  // not the old C++ bindings
#include <mpi.h>

#include "data_pipeline/shards.h"
#include "kernels/gemm.h"
#include "launch/agreement.h"
#include "launch/commands.h"
#include "launch/commit.h"
#include "launch/device_facts.h"
#include "launch/gpu_facts.h"
#include "launch/measure.h"
#include "launch/rank_links.h"
#include "launch/table.h"
#include "launch/transport.h"
#include "runtime/files.h"
#include "runtime/memory.h"
#include "runtime/progress.h"
#include "runtime/threads.h"

namespace notellm {
namespace {

// What every rank tells of itself; plain numbers and text, so that ranks can exchange it as bytes.
struct RankFacts {
  char host[64] = {};
  int64_t cores = 0, threads = 0, isa = 0, widens = 0;
  double f32_gflops = 0, bf16_gflops = 0, copy_bandwidth = 0;
};
static_assert(sizeof(RankFacts) % sizeof(int32_t) == 0);

class Doctor {
 public:
  // config: nullptr where none was given.
  Doctor(Communicator& ranks, int threads, const RunConfig* config)
      : ranks_(ranks), threads_(threads), config_(config), facts_("ll") {}
  void run();

 private:
  void versions();
  void gpus();
  void gather_facts();
  void machine();
  void rank_table();
  void collectives(Device device);
  void links();
  void agreement();
  void warn_of_threads();
  void warn(std::string text) { warnings_.push_back(std::move(text)); }
  void row(std::string name, std::string value) { facts_.row({std::move(name), std::move(value)}); }
  double best_seconds(const std::function<void()>& work);

  Communicator& ranks_;
  int threads_;
  const RunConfig* config_;
  std::vector<RankFacts> all_;      // of all ranks
  std::vector<std::string> hosts_;  // … by name
  Table facts_;
  std::vector<Fact> to_agree_;  // what must be the same on all ranks
  std::string tables_;
  std::vector<std::string> warnings_;
  bool gpus_ready_ = false;  // of all ranks
};

std::string file_or_empty(const char* path) {
  std::ifstream stream(path);
  std::stringstream text;
  text << stream.rdbuf();
  return text.str();
}

// "MemTotal:  24 kB" of /proc/meminfo, in bytes; 0 where it is not there.
double memory_field(const char* path, const std::string& name) {
  std::stringstream text(file_or_empty(path));
  for (std::string line; std::getline(text, line);)
    if (line.starts_with(name + ":")) return 1024 * std::strtod(line.c_str() + name.size() + 1, nullptr);
  return 0;
}

const char* isa_name(int64_t isa) {
  switch (static_cast<dnnl::cpu_isa>(isa)) {
    case dnnl::cpu_isa::sse41:
      return "SSE4.1";
    case dnnl::cpu_isa::avx:
      return "AVX";
    case dnnl::cpu_isa::avx2:
      return "AVX2";
    case dnnl::cpu_isa::avx2_vnni:
      return "AVX2 VNNI";
    case dnnl::cpu_isa::avx512_core:
      return "AVX-512";
    case dnnl::cpu_isa::avx512_core_vnni:
      return "AVX-512 VNNI";
    case dnnl::cpu_isa::avx512_core_bf16:
      return "AVX-512 BF16";
    case dnnl::cpu_isa::avx512_core_amx:
      return "AVX-512 AMX";
    default:
      return "not named (not x86-64, or an older one)";
  }
}

std::string mpi_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(text, &length);  // allowed before MPI starts
  const std::string all(text, length);
  return all.substr(0, all.find_first_of(",\n"));
}

// The share of fresh memory that comes in huge pages.
double huge_page_share() {
  constexpr int64_t bytes = 64 << 20;
  const double before = memory_field("/proc/self/smaps_rollup", "AnonHugePages");
  const Buffer buffer(bytes);
  std::memset(buffer.data(), 1, bytes);
  return (memory_field("/proc/self/smaps_rollup", "AnonHugePages") - before) / bytes;
}

// Cores that the container may use at a time, by its CPU quota; 0: no quota.
double cpu_quota() {
  std::stringstream text(file_or_empty("/sys/fs/cgroup/cpu.max"));
  double quota = 0, period = 0;
  text >> quota >> period;  // "max 100000" gives no number: no quota
  return period > 0 ? quota / period : 0;
}

void Doctor::versions() {
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  const dnnl_version_t* dnnl = dnnl_version();
  const auto version = [&](const char* name, std::string text) {
    to_agree_.push_back({name, text});
    row(name, std::move(text));
  };
  version("program", NOTELLM_VERSION ", commit " NOTELLM_COMMIT);
  version("compiler", "g++ " __VERSION__);
  version("oneDNN", fmt::format("{}.{}.{}", dnnl->major, dnnl->minor, dnnl->patch));
  version("HDF5", fmt::format("{}.{}.{}", major, minor, release));
  version("MPI", mpi_version());
  version("FAISS", fmt::format("{}.{}.{}", FAISS_VERSION_MAJOR, FAISS_VERSION_MINOR, FAISS_VERSION_PATCH));
  version("SentencePiece", NOTELLM_SENTENCEPIECE_VERSION);
}

void Doctor::gpus() {
  if constexpr (cuda_built) {
    GpuFacts facts = gpu_facts();
    for (auto& [name, value] : facts.rows) {
      to_agree_.push_back({name, value});
      row(std::move(name), std::move(value));
    }
    for (std::string& warning : facts.warnings) warn(std::move(warning));
    try {
      choose_device(Device::cuda, ranks_.local_rank(), ranks_.local_size());
      gpus_ready_ = true;
    } catch (const Error& error) {
      row("device: cuda", error.what());
    }
  } else {
    row("CUDA", "not built");
  }
  gpus_ready_ = ranks_.max("GPUs", static_cast<int64_t>(!gpus_ready_)) == 0;
}

void Doctor::gather_facts() {
  RankFacts mine;
  gethostname(mine.host, sizeof mine.host - 1);
  mine.cores = available_cores();
  mine.threads = threads_;
  mine.isa = static_cast<int64_t>(dnnl::get_effective_cpu_isa());
  mine.widens = gemm_widens_bf16();
  mine.f32_gflops = measure_large_product(ranks_, DType::f32).flops_per_second / 1e9;
  mine.bf16_gflops = measure_large_product(ranks_, DType::bf16).flops_per_second / 1e9;
  mine.copy_bandwidth = measure_copy_bandwidth(ranks_);
  all_.resize(ranks_.size());
  const int64_t words = sizeof(RankFacts) / sizeof(int32_t);
  const std::vector<int64_t> rows_of(ranks_.size(), 1);
  ranks_.all_gather_rows("facts of a rank", Tensor(&mine, DType::i32, {1, words}), rows_of,
                         Tensor(all_.data(), DType::i32, {ranks_.size(), words}));
  for (const RankFacts& facts : all_) hosts_.push_back(facts.host);
}

// Versions, instruction sets, configuration and shards; clocks.
void Doctor::agreement() {
  to_agree_.push_back({"instruction set", isa_name(all_[ranks_.rank()].isa)});
  std::string names = "versions, instruction set";
  if (config_) {
    to_agree_.push_back({"configuration", print_run_config(*config_)});
    names += ", configuration";
    // Of all ranks or of none, so that all have the same facts.
    const bool there = std::filesystem::exists(std::filesystem::path(config_->data.shards) / "shards.json");
    if (ranks_.max("shards", static_cast<int64_t>(there)) != 0) {
      to_agree_.push_back(
          {"set of shards in " + config_->data.shards, there ? read_shard_set(config_->data.shards).id : "none"});
      names += ", shards";
    }
  }
  const std::vector<std::string> differences = find_differences(ranks_, to_agree_);
  const std::vector<double> ahead = measure_clocks(ranks_);
  if (ranks_.rank() != 0) return;
  row("all ranks alike", differences.empty() ? names : fmt::format("no: {} differences, below", differences.size()));
  const auto [behind, before] = std::ranges::minmax(ahead);
  row("clocks, from rank 0's", fmt::format("{:+.6f} to {:+.6f} s", behind, before));
  for (const std::string& difference : differences) warn(difference);
  for (const std::string& warning : clock_warnings(ahead)) warn(warning);
}

void Doctor::machine() {
  const double total = memory_field("/proc/meminfo", "MemTotal"),
               available = memory_field("/proc/meminfo", "MemAvailable");
  const double quota = cpu_quota(), huge = huge_page_share();
  const std::string limit = file_or_empty("/sys/fs/cgroup/memory.max");
  row("CPU", fmt::format("{}, {} cores", cpu_name(), std::max(1L, sysconf(_SC_NPROCESSORS_ONLN))));
  row("instruction set", fmt::format("{} (oneDNN)", isa_name(all_[0].isa)));
  row("bf16 products", all_[0].widens ? "widened to f32: this CPU multiplies bf16 slower than f32" : "native");
  row("memory", fmt::format("{}, {} available", format_bytes(total), format_bytes(available)));
  if (!limit.empty() && limit[0] != 'm')
    row("memory of the container", format_bytes(std::strtod(limit.c_str(), nullptr)));
  row("huge pages", fmt::format("{:.0f} % of a fresh buffer", 100 * std::clamp(huge, 0.0, 1.0)));
  if (huge < 0.5)
    warn(
        "no huge pages: large buffers cost more TLB misses; "
        "'echo madvise > /sys/kernel/mm/transparent_hugepage/enabled' (root) allows them where the kernel has them");
  if (quota > 0) {
    row("CPU quota of the container", fmt::format("{:.1f} cores", quota));
    int64_t asked = 0;
    for (const RankFacts& facts : all_) asked += std::strcmp(facts.host, all_[0].host) == 0 ? facts.threads : 0;
    if (static_cast<double>(asked) > quota + 0.5)
      warn(fmt::format(
          "{} threads on {} share a CPU quota of {:.1f} cores: they will be held up; set 'threads' or fewer ranks",
          asked, all_[0].host, quota));
  }
  if (available > 0 && available < 2e9) warn(fmt::format("only {} of memory are available", format_bytes(available)));
}

void Doctor::warn_of_threads() {
  for (int rank = 0; rank < ranks_.size(); ++rank) {
    const RankFacts& facts = all_[rank];
    if (facts.threads > facts.cores)
      warn(fmt::format("rank {}: {} threads bound to {} cores: start mpirun with --bind-to none, or fewer threads",
                       rank, facts.threads, facts.cores));
    if (facts.f32_gflops < 0.5 * all_[0].f32_gflops)
      warn(fmt::format("rank {} is less than half as fast as rank 0: all ranks will wait for it", rank));
  }
}

void Doctor::rank_table() {
  Table table("rlrrrrr");
  table.row({"rank", "host", "cores", "threads", "f32 GFLOP/s", "bf16 GFLOP/s", "copy GB/s"});
  for (int rank = 0; rank < ranks_.size(); ++rank) {
    const RankFacts& f = all_[rank];
    table.row({std::to_string(rank), f.host, std::to_string(f.cores), std::to_string(f.threads),
               fmt::format("{:.0f}", f.f32_gflops), fmt::format("{:.0f}", f.bf16_gflops),
               fmt::format("{:.1f}", f.copy_bandwidth / 1e9)});
  }
  tables_ += "\nranks, all measured at once (products of 1024³; a copy of memory, read and written)\n" + table.text(2);
}

double Doctor::best_seconds(const std::function<void()>& work) {
  ranks_.barrier("measure collectives");
  return ranks_.max("slowest rank", fastest_of(10, work));
}

void Doctor::collectives(Device device) {
  Stream stream(device);
  Table table("lrrr");
  table.row({"collective", "size", "time", "GB/s"});
  for (const int64_t elements : {int64_t{1}, int64_t{1} << 18, int64_t{1} << 22}) {
    const int64_t size = elements * ranks_.size(), bytes = size * 4;
    const Buffer all_memory(bytes, memory_of(device)), own_memory(elements * 4, memory_of(device));
    const Tensor all = all_memory.tensor(DType::f32, {size, 1}), own = own_memory.tensor(DType::f32, {elements, 1});
    for (const Tensor& t : {all, own}) set_zero(stream, t);
    const std::vector<int64_t> rows_of(ranks_.size(), elements);
    const auto add = [&](const char* name, double seconds, int64_t moved) {
      table.row({name, format_bytes(static_cast<double>(moved)), fmt::format("{:.1f} µs", 1e6 * seconds),
                 fmt::format("{:.2f}", static_cast<double>(moved) / seconds / 1e9)});
    };
    add("all-reduce", best_seconds([&] {
          ranks_.all_reduce_sum(stream, "measured all-reduce", own);
          stream.synchronize();
        }),
        elements * 4);
    add("all-gather", best_seconds([&] {
          ranks_.all_gather_rows(stream, "measured all-gather", own, rows_of, all);
          stream.synchronize();
        }),
        bytes);
  }
  tables_ += fmt::format("\ncollectives over all ranks{} (size: of the sum, and of all parts together)\n",
                         device == Device::cpu ? "" : ", GPU to GPU by NCCL") +
             table.text(2);
}

void Doctor::links() {
  const std::vector<RankLink> links = measure_links(ranks_, hosts_);
  const MpiComponents components = mpi_components();
  const bool one_host = std::ranges::all_of(hosts_, [&](const std::string& host) { return host == hosts_[0]; });
  row("messages within a host", transport_of(components, true));
  if (!one_host) row("messages between hosts", transport_of(components, false));
  row("collectives", ranks_.on_shared_memory() ? "memory shared by the ranks" : "messages");
  tables_ += "\nmessages between two ranks, one pair at a time: latency of 8 bytes, GB/s of 4 MiB\n" +
             link_text(links, hosts_);
}

void Doctor::run() {
  versions();
  gpus();
  gather_facts();
  machine();
  warn_of_threads();
  if (ranks_.size() > 1) agreement();
  rank_table();
  if (ranks_.size() > 1) {
    collectives(Device::cpu);
    if (gpus_ready_) collectives(Device::cuda);
    links();
  } else {
    tables_ += "\none rank; 'mpirun -n 2 notellm doctor' measures between ranks as well\n";
  }
  if (ranks_.rank() != 0) return;
  std::printf("%s%s\n", facts_.text().c_str(), tables_.c_str());
  for (const std::string& warning : warnings_) std::printf("warning: %s\n", warning.c_str());
  if (warnings_.empty()) std::printf("nothing to warn of\n");
}

}  // namespace

void add_doctor(CLI::App& app, Action& chosen) {
  CLI::App* command = app.add_subcommand(
      "doctor", "what this machine has and how fast it is; alone or under mpirun, as a run would be");
  command->footer(
      R"(Versions, cores, threads, instruction set, memory, GPUs; measured speed of matrix products (f32, bf16) and of
memory. Under mpirun also whether the ranks agree in versions, instruction sets, configuration (CONFIG), shards and
clocks; by what messages go, and their speed between ranks; warnings about what would make a run slow or wrong. Takes a
few seconds and writes no file.
Example: mpirun -n 2 notellm doctor run.yaml)");
  auto options = std::make_shared<ConfigOptions>();
  auto threads = std::make_shared<int>(0);
  options->add_to(*command, false);
  command
      ->add_option(
          "--threads", *threads,
          "threads of a rank, 0: CONFIG's, or the cores that it may use, shared out over the ranks of its host")
      ->type_name("N")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 20).description(""));
  command->callback([options, threads, &chosen] {
    chosen = [options, threads](Communicator& ranks) {
      if (options->path.empty() && !options->overrides.empty())
        fail(ErrorKind::usage,
             "--set {}: there is no configuration to set it in; give its file first: notellm doctor CONFIG --set …",
             fmt::join(options->overrides, " "));
      std::optional<RunConfig> config;
      if (!options->path.empty()) config = read_run_config(options->path, options->overrides);
      const int wanted = *threads == 0 && config ? config->threads : *threads;
      Doctor(ranks, set_threads(wanted, ranks), config ? &*config : nullptr).run();
      return 0;
    };
  });
}

}  // namespace notellm
