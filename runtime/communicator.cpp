#include "runtime/communicator.h"

#define OMPI_SKIP_MPICXX 1  // not the old C++ bindings
#include <mpi.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <numeric>

#include "runtime/files.h"
#include "runtime/memory.h"
#include "runtime/nccl.h"
#include "runtime/watchdog.h"

namespace notellm {
namespace {
constexpr int64_t message_bytes = 16 << 20;  // larger ones are cut: MPI counts in int, and longer gains nothing
constexpr int64_t scratch_bytes = 4 << 20;   // what a rank receives before it sums

bool environment_has(const char* name) { return std::getenv(name) != nullptr; }

// Without a launcher MPI is left alone, so that one rank works where MPI cannot start.
bool started_by_launcher() {
  const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");  // unlike SLURM_NTASKS, not set in the batch script itself
  return environment_has("OMPI_COMM_WORLD_SIZE") || environment_has("PMI_SIZE") || environment_has("PMIX_RANK") ||
         (tasks && std::atoi(tasks) > 1);
}

// MPI's life: from the first world communicator to the last.
class Mpi {
 public:
  static std::shared_ptr<Mpi> get() {
    static std::weak_ptr<Mpi> current;
    std::shared_ptr<Mpi> mpi = current.lock();
    if (!mpi) current = mpi = std::make_shared<Mpi>();
    return mpi;
  }

  Mpi() {
    int finalized = 0;
    MPI_Finalized(&finalized);
    NOTELLM_CHECK(!finalized, "MPI has been finalised and cannot start again: keep one world communicator");
    // Ranks that wait give their core away: with more ranks and threads than cores spinning would starve the others.
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
    // Many containers forbid reading another process's memory, which Open MPI notices too late.
    if (!can_read_processes()) setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
    int provided = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
    if (provided < MPI_THREAD_SERIALIZED)
      fail(ErrorKind::internal, "this MPI offers thread level {}, notellm needs MPI_THREAD_SERIALIZED ({})", provided,
           MPI_THREAD_SERIALIZED);
  }
  Mpi(const Mpi&) = delete;
  Mpi& operator=(const Mpi&) = delete;
  // While an error passes through, the other ranks may never come to finalise: whoever catches it calls abort.
  ~Mpi() {
    if (std::uncaught_exceptions() == 0) MPI_Finalize();
  }

 private:
  static bool can_read_processes() {
    char from = 1, to = 0;
    const iovec local{&to, 1}, remote{&from, 1};
    return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == 1;
  }
};

// out[i] := ((parts[0][i] + parts[1][i]) + parts[2][i]) + … in T; out may be one of the parts.
template <class T, class Stored = T>
void sum_in_order(const std::vector<const char*>& parts, int64_t n, char* out) {
  constexpr int64_t tile = 1024;
  T sum[tile];
  for (int64_t begin = 0; begin < n; begin += tile) {
    const int64_t count = std::min(tile, n - begin);
    const Stored* first = reinterpret_cast<const Stored*>(parts[0]) + begin;
    for (int64_t i = 0; i < count; ++i) sum[i] = static_cast<T>(first[i]);
    for (size_t p = 1; p < parts.size(); ++p) {
      const Stored* part = reinterpret_cast<const Stored*>(parts[p]) + begin;
      for (int64_t i = 0; i < count; ++i) sum[i] += static_cast<T>(part[i]);
    }
    Stored* const to = reinterpret_cast<Stored*>(out) + begin;
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Stored>(sum[i]);
  }
}

void sum_in_order(DType dtype, const std::vector<const char*>& parts, int64_t n, char* out) {
  switch (dtype) {
    case DType::f32:
      return sum_in_order<float>(parts, n, out);
    case DType::f64:
      return sum_in_order<double>(parts, n, out);
    case DType::i32:
      return sum_in_order<uint32_t>(parts, n, out);  // unsigned: wraps without undefined behaviour
    case DType::i64:
      return sum_in_order<uint64_t>(parts, n, out);
    case DType::bf16:
      return sum_in_order<float, bf16>(parts, n, out);
  }
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

struct Part {
  char* data;
  int64_t bytes;
};
}  // namespace

struct Communicator::State {
  std::shared_ptr<Mpi> mpi;  // none: one rank without MPI
  MPI_Comm comm = MPI_COMM_NULL;
  int rank = 0, size = 1, local_rank = 0, local_size = 1;
  int world_rank = 0;  // what messages call this rank
  // One count of a communicator and the groups split from it.
  std::shared_ptr<std::map<std::string, int64_t>> bytes_sent = std::make_shared<std::map<std::string, int64_t>>();
  std::vector<char> scratch;
  std::shared_ptr<gpu::Nccl> nccl;  // from the first collective of device memory on

  ~State() {
    nccl.reset();
    if (mpi && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm);
  }
  void look_around();
  void check(int code, const char* name) const;
  // To each other rank so many bytes; of a reduce-scatter, its rows.
  void count(const char* name, int64_t bytes) {
    if (size > 1) (*bytes_sent)[name] += bytes * (size - 1);
  }
  void count_reduce_scatter(const char* name, const Tensor& all, const Tensor& mine) {
    if (size > 1) (*bytes_sent)[name] += all.bytes() - mine.bytes();
  }
  void count_all_reduce(const char* name, const Tensor& t) {
    if (size > 1) (*bytes_sent)[name] += all_reduce_bytes(t.size(), size_of(t.dtype), rank, size);
  }
  void exchange(const char* name, const std::vector<Part>& sends, const std::vector<Part>& receives) const;
  void finish(const char* name, std::vector<MPI_Request>& requests, const std::vector<int>& expected) const;
  void gather_blocks(const char* name, const char* mine, const std::vector<int64_t>& begins, int64_t unit,
                     char* all) const;
  void reduce_blocks(const char* name, char* all, const std::vector<int64_t>& begins, DType dtype, char* mine);
  void broadcast(const char* name, char* data, int64_t bytes, int root) const;
};

// From `comm` to what is known of it.
void Communicator::State::look_around() {
  MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &size);
  MPI_Comm host;
  MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &host);
  MPI_Comm_rank(host, &local_rank);
  MPI_Comm_size(host, &local_size);
  MPI_Comm_free(&host);
}

void Communicator::State::check(int code, const char* name) const {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail(ErrorKind::peer, "rank {}: collective {} failed: {}; look at the first error of the other ranks", world_rank,
       name, std::string_view(text, length));
}

// To each rank its part of `sends`, from each its part of `receives`; both ends know the bytes. The tag comes from the
// name, so that ranks in different collectives wait (and the watchdog tells both names) instead of mixing their data.
void Communicator::State::exchange(const char* name, const std::vector<Part>& sends,
                                   const std::vector<Part>& receives) const {
  if (receives[rank].data != sends[rank].data)
    std::copy_n(sends[rank].data, std::min(sends[rank].bytes, receives[rank].bytes), receives[rank].data);
  if (size == 1) return;
  const int tag = static_cast<int>(hash64(name) & 0x7fff);
  std::vector<MPI_Request> requests;
  std::vector<int> expected;  // bytes of the first requests, those that receive
  const auto post = [&](const Part& part, int peer, bool receive) {
    for (int64_t at = 0; at < part.bytes; at += message_bytes) {
      const int bytes = static_cast<int>(std::min(message_bytes, part.bytes - at));
      MPI_Request& request = requests.emplace_back();
      check(receive ? MPI_Irecv(part.data + at, bytes, MPI_BYTE, peer, tag, comm, &request)
                    : MPI_Isend(part.data + at, bytes, MPI_BYTE, peer, tag, comm, &request),
            name);
      if (receive) expected.push_back(bytes);
    }
  };
  for (int i = 1; i < size; ++i) post(receives[(rank + size - i) % size], (rank + size - i) % size, true);
  for (int i = 1; i < size; ++i) post(sends[(rank + i) % size], (rank + i) % size, false);
  finish(name, requests, expected);
}

// Waits for all requests, of which the first expected.size() receive that many bytes each. One by one, because
// MPI_Waitall of Open MPI 4.1 may spin for ever when one of them fails; errors are kept until no request uses a buffer.
void Communicator::State::finish(const char* name, std::vector<MPI_Request>& requests,
                                 const std::vector<int>& expected) const {
  int first_error = MPI_SUCCESS;
  std::string wrong_size;
  for (size_t i = 0; i < requests.size(); ++i) {
    MPI_Status status;
    const int code = MPI_Wait(&requests[i], &status);
    if (first_error == MPI_SUCCESS) first_error = code;
    if (code != MPI_SUCCESS || i >= expected.size()) continue;
    int got = 0;
    MPI_Get_count(&status, MPI_BYTE, &got);
    if (got != expected[i] && wrong_size.empty())
      wrong_size = fmt::format("rank {} sent {} bytes where {} are due", status.MPI_SOURCE, got, expected[i]);
  }
  check(first_error, name);
  if (!wrong_size.empty())
    fail(ErrorKind::peer, "rank {}: collective {}: {}: the ranks' shapes differ", world_rank, name, wrong_size);
}

// Rank r's block, [begins[r], begins[r + 1]) in units of `unit` bytes, to all ranks. `mine` may lie in its place in
// `all`.
void Communicator::State::gather_blocks(const char* name, const char* mine, const std::vector<int64_t>& begins,
                                        int64_t unit, char* all) const {
  std::vector<Part> sends, receives;
  for (int r = 0; r < size; ++r) {
    sends.push_back({const_cast<char*>(mine), (begins[rank + 1] - begins[rank]) * unit});
    receives.push_back({all + begins[r] * unit, (begins[r + 1] - begins[r]) * unit});
  }
  exchange(name, sends, receives);
}

// mine := the sum over ranks of the rank's own block of `all`, piece by piece, so that little memory is needed. Each
// element's sum is in the order of ranks, so that pieces and blocks change no bit. `mine` may lie in its place in
// `all`.
void Communicator::State::reduce_blocks(const char* name, char* all, const std::vector<int64_t>& begins, DType dtype,
                                        char* mine) {
  const int64_t unit = size_of(dtype);
  const int64_t piece = std::max<int64_t>(1, scratch_bytes / size / unit);
  int64_t longest = 0;
  for (int r = 0; r < size; ++r) longest = std::max(longest, begins[r + 1] - begins[r]);
  scratch.resize(size == 1 ? 0 : static_cast<size_t>(std::min(piece, longest) * unit * size));
  for (int64_t at = 0; at < longest; at += piece) {
    const auto count_of = [&](int r) { return std::clamp<int64_t>(begins[r + 1] - begins[r] - at, 0, piece); };
    const int64_t count = count_of(rank);
    std::vector<Part> sends, receives;
    for (int r = 0; r < size; ++r) {
      sends.push_back({all + (begins[r] + at) * unit, count_of(r) * unit});
      receives.push_back({r == rank ? sends[r].data : scratch.data() + r * count * unit, count * unit});
    }
    exchange(name, sends, receives);
    std::vector<const char*> parts;
    for (const Part& part : receives) parts.push_back(part.data);
    if (count > 0) sum_in_order(dtype, parts, count, mine + at * unit);
  }
}

void Communicator::State::broadcast(const char* name, char* data, int64_t bytes, int root) const {
  if (size == 1) return;
  for (int64_t at = 0; at < bytes; at += message_bytes)
    check(MPI_Bcast(data + at, static_cast<int>(std::min(message_bytes, bytes - at)), MPI_BYTE, root, comm), name);
}

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

Communicator Communicator::split(const char* name, int color) const {
  if (!state_->mpi) return self();
  const WatchedCollective watched(name, state_->world_rank);
  auto state = std::make_unique<State>();
  state->mpi = state_->mpi;
  state->bytes_sent = state_->bytes_sent;
  state_->check(MPI_Comm_split(state_->comm, color, rank(), &state->comm), name);
  state->look_around();
  return Communicator(std::move(state));
}

int Communicator::rank() const { return state_->rank; }
int Communicator::size() const { return state_->size; }
int Communicator::local_rank() const { return state_->local_rank; }
int Communicator::local_size() const { return state_->local_size; }
const std::map<std::string, int64_t>& Communicator::bytes_sent() const { return *state_->bytes_sent; }

void Communicator::all_reduce_sum(const char* name, Tensor t) {
  const WatchedCollective watched(name, state_->world_rank);
  std::vector<int64_t> begins;
  for (int r = 0; r <= size(); ++r) begins.push_back(part_begin(t.size(), r, size()));
  char* data = static_cast<char*>(t.data);
  char* mine = data + begins[rank()] * size_of(t.dtype);
  state_->reduce_blocks(name, data, begins, t.dtype, mine);
  state_->gather_blocks(name, mine, begins, size_of(t.dtype), data);
  state_->count_all_reduce(name, t);
}

void Communicator::all_gather_rows(const char* name, Tensor mine, std::span<const int64_t> rows_of, Tensor all) {
  const WatchedCollective watched(name, state_->world_rank);
  check_rows(name, rank(), size(), mine, rows_of, all);
  state_->gather_blocks(name, static_cast<const char*>(mine.data), begins_of(rows_of), all.cols() * size_of(all.dtype),
                        static_cast<char*>(all.data));
  state_->count(name, mine.bytes());
}

void Communicator::reduce_scatter_rows(const char* name, Tensor all, std::span<const int64_t> rows_of, Tensor mine) {
  const WatchedCollective watched(name, state_->world_rank);
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
      state_->nccl = std::make_shared<gpu::Nccl>(id, rank(), size(), state_->world_rank);
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
  const WatchedCollective watched(name, state_->world_rank);
  NOTELLM_CHECK(0 <= root && root < size(), "{}: root {} of {} ranks", name, root, size());
  state_->broadcast(name, static_cast<char*>(t.data), t.bytes(), root);
  if (rank() == root) state_->count(name, t.bytes());
}

std::string Communicator::broadcast(const char* name, const std::string& text, int root) {
  int64_t length = static_cast<int64_t>(text.size());
  broadcast(name, Tensor::of(&length, {1}), root);
  const WatchedCollective watched(name, state_->world_rank);
  std::string result = rank() == root ? text : std::string(static_cast<size_t>(length), '\0');
  state_->broadcast(name, result.data(), length, root);
  if (rank() == root) state_->count(name, length);
  return result;
}

void Communicator::barrier(const char* name) {
  const WatchedCollective watched(name, state_->world_rank);
  if (size() > 1) state_->check(MPI_Barrier(state_->comm), name);
}

void Communicator::require_equal(const char* name, const std::string& what, const std::string& text) {
  const std::vector<int64_t> hashes = all_gather(name, static_cast<int64_t>(hash64(text)));
  const auto other = std::ranges::find_if(hashes, [&](int64_t hash) { return hash != hashes[0]; });
  if (other == hashes.end()) return;
  const int r = static_cast<int>(other - hashes.begin());
  const std::string first = broadcast(name, text, 0), differs = broadcast(name, text, r);
  // From the beginning of the line in which they part to its end.
  const size_t part = std::ranges::mismatch(first, differs).in1 - first.begin();
  const size_t begin = part == 0 ? 0 : first.rfind('\n', part - 1) + 1;  // npos + 1 is 0
  const auto line = [begin](const std::string& s) { return s.substr(begin, s.find('\n', begin) - begin); };
  fail(ErrorKind::peer, "rank {} has another {} than rank 0: '{}', not '{}'; give all ranks the same", r, what,
       line(differs), line(first));
}

int64_t all_reduce_bytes(int64_t elements, int64_t element_bytes, int rank, int ranks) {
  const int64_t own = part_begin(elements, rank + 1, ranks) - part_begin(elements, rank, ranks);
  return (elements - own + own * (ranks - 1)) * element_bytes;
}

void Communicator::abort(int exit_code) {
  std::fflush(nullptr);
  int running = 0, finalized = 0;
  MPI_Initialized(&running);
  MPI_Finalized(&finalized);
  if (running && !finalized) MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

}  // namespace notellm
