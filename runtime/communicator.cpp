#include "runtime/communicator.h"

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "runtime/communicator_state.h"
#include "runtime/files.h"
#include "runtime/memory.h"
#include "runtime/watchdog.h"

namespace notellm {
namespace {
bool environment_has(const char* name) { return std::getenv(name) != nullptr; }

// Without a launcher MPI is left alone, so that one rank works where MPI cannot start.
bool started_by_launcher() {
  const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");  // unlike SLURM_NTASKS, not set in the batch script itself
  return environment_has("OMPI_COMM_WORLD_SIZE") || environment_has("PMI_SIZE") || environment_has("PMIX_RANK") ||
         (tasks && std::atoi(tasks) > 1);
}

// Where each rank's part begins, and the end: [ranks + 1].
std::vector<int64_t> begins_of(std::span<const int64_t> counts) {
  std::vector<int64_t> begins(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), begins.begin() + 1);
  return begins;
}

void check_rows(const char* name, int rank, int size, const Tensor& mine, std::span<const int64_t> rows_of,
                const Tensor& all) {
  const int64_t total = std::accumulate(rows_of.begin(), rows_of.end(), int64_t{0});
  NOTELLM_CHECK(static_cast<int>(rows_of.size()) == size, "{}: rows of {} ranks, not {}", name, rows_of.size(), size);
  NOTELLM_CHECK(mine.rows() == rows_of[rank] && all.rows() == total,
                "{}: rank {} has {} where {} rows are agreed, all is {} where the sum is {}", name, rank,
                describe(mine), rows_of[rank], describe(all), total);
  NOTELLM_CHECK(mine.size() == 0 || (mine.cols() == all.cols() && mine.dtype == all.dtype), "{}: {} against {}", name,
                describe(mine), describe(all));
}

// An all-reduce's elements are shared out evenly: those of the ranks before `rank`.
int64_t part_begin(int64_t elements, int rank, int ranks) {
  return elements / ranks * rank + std::min<int64_t>(rank, elements % ranks);
}
}  // namespace

Communicator::Communicator(std::unique_ptr<State> state) : state_(std::move(state)) {}
Communicator::Communicator(Communicator&&) noexcept = default;
Communicator& Communicator::operator=(Communicator&&) noexcept = default;
Communicator::~Communicator() = default;

Communicator Communicator::self() { return Communicator(std::make_unique<State>()); }

Communicator Communicator::world() {
  if (!started_by_launcher()) return self();
  auto state = std::make_unique<State>();
  state->mpi = Mpi::get();
  MPI_Comm_dup(MPI_COMM_WORLD, &state->comm);
  state->look_around();
  return Communicator(std::move(state));
}

Communicator Communicator::split(const char* group, int color) const {
  if (!state_->mpi) return self();
  const WatchedCollective watched(group, state_->group);
  std::string name = fmt::format("{} {}", group, color);
  if (state_->group != State().group) name += " of " + state_->group;
  MPI_Comm comm = MPI_COMM_NULL;
  state_->check(MPI_Comm_split(state_->comm, color, rank(), &comm), group);
  return Communicator(state_->derive(comm, std::move(name)));
}

Communicator Communicator::duplicate() const {
  if (!state_->mpi) return self();
  const WatchedCollective watched("duplicate", state_->group);
  MPI_Comm comm = MPI_COMM_NULL;
  state_->check(MPI_Comm_dup(state_->comm, &comm), "duplicate");
  return Communicator(state_->derive(comm, state_->group));
}

const std::string& Communicator::group() const { return state_->group; }
int Communicator::rank() const { return state_->rank; }
int Communicator::size() const { return state_->size; }
int Communicator::local_rank() const { return state_->local_rank; }
int Communicator::local_size() const { return state_->local_size; }
bool Communicator::on_shared_memory() const { return state_->host != nullptr; }
const std::map<std::string, int64_t>& Communicator::bytes_sent() const { return state_->sent->of_name; }
int64_t Communicator::bytes_sent_in_group() const { return state_->bytes_in_group; }

void Communicator::all_reduce_sum(const char* name, Tensor t) {
  const WatchedCollective watched(name, state_->group);
  std::vector<int64_t> begins;
  for (int r = 0; r <= size(); ++r) begins.push_back(part_begin(t.size(), r, size()));
  char* data = static_cast<char*>(t.data);
  char* mine = data + begins[rank()] * size_of(t.dtype);
  state_->reduce_blocks(name, data, begins, t.dtype, mine);
  state_->gather_blocks(name, mine, begins, size_of(t.dtype), data);
  state_->count_all_reduce(name, t);
}

void Communicator::all_gather_rows(const char* name, Tensor mine, std::span<const int64_t> rows_of, Tensor all) {
  const WatchedCollective watched(name, state_->group);
  check_rows(name, rank(), size(), mine, rows_of, all);
  state_->gather_blocks(name, static_cast<const char*>(mine.data), begins_of(rows_of), all.cols() * size_of(all.dtype),
                        static_cast<char*>(all.data));
  state_->count(name, mine.bytes());
}

void Communicator::reduce_scatter_rows(const char* name, Tensor all, std::span<const int64_t> rows_of, Tensor mine) {
  const WatchedCollective watched(name, state_->group);
  check_rows(name, rank(), size(), mine, rows_of, all);
  std::vector<int64_t> begins = begins_of(rows_of);
  for (int64_t& begin : begins) begin *= all.cols();
  state_->reduce_blocks(name, static_cast<char*>(all.data), begins, all.dtype, static_cast<char*>(mine.data));
  state_->count_reduce_scatter(name, all, mine);
}

gpu::Nccl& Communicator::nccl() {
  if constexpr (cuda_built)
    if (!state_->nccl) {
      const std::string id = broadcast("start of NCCL", rank() == 0 ? gpu::Nccl::make_id() : "", 0);
      state_->nccl = std::make_shared<gpu::Nccl>(id, rank(), size(), state_->group);
    }
  return *state_->nccl;
}

void Communicator::all_reduce_sum(Stream& stream, const char* name, Tensor t) {
  if (!stream.on_gpu()) return all_reduce_sum(name, t);
  state_->count_all_reduce(name, t);
  if constexpr (cuda_built)
    if (size() > 1 && t.size() > 0) nccl().all_reduce_sum(stream, name, t);
}

void Communicator::all_gather_rows(Stream& stream, const char* name, Tensor mine, std::span<const int64_t> rows_of,
                                   Tensor all) {
  if (!stream.on_gpu()) return all_gather_rows(name, mine, rows_of, all);
  check_rows(name, rank(), size(), mine, rows_of, all);
  state_->count(name, mine.bytes());
  if (size() == 1) {
    if (mine.data != all.data) copy(stream, mine, all);
    return;
  }
  std::vector<int64_t> begins = begins_of(rows_of);
  for (int64_t& begin : begins) begin *= all.cols();
  if constexpr (cuda_built) nccl().all_gather(stream, name, mine, begins, all);
}

void Communicator::reduce_scatter_rows(Stream& stream, const char* name, Tensor all, std::span<const int64_t> rows_of,
                                       Tensor mine) {
  if (!stream.on_gpu()) return reduce_scatter_rows(name, all, rows_of, mine);
  check_rows(name, rank(), size(), mine, rows_of, all);
  state_->count_reduce_scatter(name, all, mine);
  if (size() == 1) {
    if (mine.data != all.data) copy(stream, all, mine);
    return;
  }
  std::vector<int64_t> begins = begins_of(rows_of);
  for (int64_t& begin : begins) begin *= all.cols();
  if constexpr (cuda_built) nccl().reduce_scatter(stream, name, all, begins, mine);
}

std::vector<int64_t> Communicator::all_gather(const char* name, int64_t value) {
  std::vector<int64_t> values(size());
  const std::vector<int64_t> one_each(size(), 1);
  all_gather_rows(name, Tensor::of(&value, {1}), one_each, Tensor::of(values.data(), {size()}));
  return values;
}

int64_t Communicator::max(const char* name, int64_t value) { return std::ranges::max(all_gather(name, value)); }

double Communicator::max(const char* name, double value) {
  std::vector<double> values(size());
  const std::vector<int64_t> one_each(size(), 1);
  all_gather_rows(name, Tensor::of(&value, {1}), one_each, Tensor::of(values.data(), {size()}));
  for (double other : values)
    if (std::isnan(other)) return other;
  return std::ranges::max(values);
}

void Communicator::broadcast(const char* name, Tensor t, int root) {
  const WatchedCollective watched(name, state_->group);
  NOTELLM_CHECK(0 <= root && root < size(), "{}: root {} of {} ranks", name, root, size());
  state_->broadcast(name, static_cast<char*>(t.data), t.bytes(), root);
  if (rank() == root) state_->count(name, t.bytes());
}

std::string Communicator::broadcast(const char* name, const std::string& text, int root) {
  int64_t length = static_cast<int64_t>(text.size());
  broadcast(name, Tensor::of(&length, {1}), root);
  const WatchedCollective watched(name, state_->group);
  std::string result = rank() == root ? text : std::string(static_cast<size_t>(length), '\0');
  state_->broadcast(name, result.data(), length, root);
  if (rank() == root) state_->count(name, length);
  return result;
}

void Communicator::barrier(const char* name) {
  const WatchedCollective watched(name, state_->group);
  if (size() > 1) state_->check(MPI_Barrier(state_->comm), name);
}

std::string Communicator::first_text(const char* name, const std::string& text) {
  const std::vector<int64_t> lengths = all_gather(name, static_cast<int64_t>(text.size()));
  const auto first = std::ranges::find_if(lengths, [](int64_t length) { return length > 0; });
  return first == lengths.end() ? "" : broadcast(name, text, static_cast<int>(first - lengths.begin()));
}

void Communicator::require_equal(const char* name, const std::string& what, const std::string& text) {
  const std::vector<int64_t> hashes = all_gather(name, static_cast<int64_t>(hash64(text)));
  const auto other = std::ranges::find_if(hashes, [&](int64_t hash) { return hash != hashes[0]; });
  if (other == hashes.end()) return;
  const int r = static_cast<int>(other - hashes.begin());
  const std::string first = broadcast(name, text, 0), differs = broadcast(name, text, r);
  throw Error(ErrorKind::peer, describe_difference(r, what, differs, first));
}

std::string describe_difference(int rank, const std::string& what, const std::string& text, const std::string& first) {
  // From the beginning of the line in which they part to its end.
  const size_t part = std::ranges::mismatch(first, text).in1 - first.begin();
  const size_t begin = part == 0 ? 0 : first.rfind('\n', part - 1) + 1;  // npos + 1 is 0
  const auto line = [begin](const std::string& s) { return s.substr(begin, s.find('\n', begin) - begin); };
  return fmt::format("rank {} has another {} than rank 0: '{}', not '{}'; give all ranks the same", rank, what,
                     line(text), line(first));
}

int64_t all_reduce_bytes(int64_t elements, int64_t element_bytes, int rank, int ranks) {
  const int64_t own = part_begin(elements, rank + 1, ranks) - part_begin(elements, rank, ranks);
  return (elements - own + own * (ranks - 1)) * element_bytes;
}

void Communicator::abort(int exit_code) {
  leave_watchdog();
  std::fflush(nullptr);
  int running = 0, finalized = 0;
  MPI_Initialized(&running);
  MPI_Finalized(&finalized);
  // Open MPI 4 would say "MPI_ABORT was invoked …" below the cause; no parameter of it keeps that back alone.
  if (auto* quiet = static_cast<bool*>(dlsym(RTLD_DEFAULT, "orte_execute_quiet"))) *quiet = true;
  if (running && !finalized) MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

}  // namespace notellm
