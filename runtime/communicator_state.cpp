#include "runtime/communicator_state.h"

#include <sched.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <thread>

#include "runtime/files.h"
#include "runtime/ordered_sum.h"
#include "runtime/watchdog.h"

namespace notellm {

thread_local const std::atomic<bool>* Communicator::State::stop = nullptr;

void run_beside_main_thread(const std::atomic<bool>& stop) {
  Communicator::State::stop = &stop;
  leave_thread_unwatched();
}

namespace {
constexpr int64_t message_bytes = 16 << 20;  // larger ones are cut: MPI counts in int, and longer gains nothing
constexpr int64_t scratch_bytes = 4 << 20;   // what a rank receives by messages before it sums

// Whether ranks of a host pass data through memory that they share; otherwise by messages, as between hosts.
bool shared_memory_wanted() {
  const char* value = std::getenv("NOTELLM_SHARED_MEMORY");
  return !value || std::string_view(value) != "0";
}

// The ranks of `comm` on this host.
class HostRanks {
 public:
  explicit HostRanks(MPI_Comm comm) {
    MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &comm_);
    MPI_Comm_rank(comm_, &rank);
    MPI_Comm_size(comm_, &size);
  }
  HostRanks(const HostRanks&) = delete;
  HostRanks& operator=(const HostRanks&) = delete;
  ~HostRanks() {
    if (std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
  }
  // New memory of all of them.
  SharedMemory share(int64_t bytes) const {
    SharedMemory memory;
    std::array<char, 64> name = {};
    if (rank == 0) {
      memory = SharedMemory::create(bytes);
      memory.name().copy(name.data(), name.size() - 1);
    }
    MPI_Bcast(name.data(), name.size(), MPI_CHAR, 0, comm_);
    if (rank != 0) memory = SharedMemory::open(name.data(), bytes);
    MPI_Barrier(comm_);
    memory.remove_name();
    return memory;
  }

  int rank = 0, size = 1;

 private:
  MPI_Comm comm_ = MPI_COMM_NULL;
};

bool can_read_processes() {
  char from = 1, to = 0;
  const iovec local{&to, 1}, remote{&from, 1};
  return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == 1;
}

// Of all ranks the same where they agree on what they gather or reduce.
uint64_t shape_of(const std::vector<int64_t>& begins, int64_t unit) {
  return hash64({reinterpret_cast<const char*>(begins.data()), begins.size() * sizeof(int64_t)}) ^
         static_cast<uint64_t>(unit);
}

int64_t longest_of(const std::vector<int64_t>& begins) {
  int64_t longest = 0;
  for (size_t r = 1; r < begins.size(); ++r) longest = std::max(longest, begins[r] - begins[r - 1]);
  return longest;
}
}  // namespace

std::shared_ptr<Mpi> Mpi::get() {
  static std::weak_ptr<Mpi> current;
  std::shared_ptr<Mpi> mpi = current.lock();
  if (!mpi) current = mpi = std::make_shared<Mpi>();
  return mpi;
}

Mpi::Mpi() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  NOTELLM_CHECK(!finalized, "MPI has been finalised and cannot start again: keep one world communicator");
  // Ranks that wait give their core away: with more ranks and threads than cores spinning would starve the others.
  setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
  // Many containers forbid reading another process's memory, which Open MPI notices too late.
  if (!can_read_processes()) setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
  int provided = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided);
  if (provided < MPI_THREAD_MULTIPLE)
    fail(ErrorKind::internal, "this MPI offers thread level {}, notellm needs MPI_THREAD_MULTIPLE ({})", provided,
         MPI_THREAD_MULTIPLE);
  share_states();
}

// While an error passes through, the other ranks may never come to finalise: whoever catches it calls abort. All leave
// together: mpirun may hang or crash over a rank that finalises while others are being ended.
Mpi::~Mpi() {
  const bool ends_well = std::uncaught_exceptions() == 0;
  if (ends_well) {
    const WatchedCollective watched("end of the program", "all ranks");
    MPI_Barrier(MPI_COMM_WORLD);
  }
  set_watchdog_states({}, 0, rank_, 1, {});
  if (!ends_well) return;
  MPI_Comm_free(&mail_);
  MPI_Finalize();
}

// The watchdogs of a host see each other's ranks.
void Mpi::share_states() {
  int ranks = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  MPI_Comm_dup(MPI_COMM_WORLD, &mail_);
  MPI_Comm_set_errhandler(mail_, MPI_ERRORS_RETURN);
  const WatchdogMail mail{
      [this](const RankState& own) { answer(own); },
      [this](std::span<RankState> of_rank, const std::function<bool()>& wait) { ask(of_rank, wait); }};
  if (!shared_memory_wanted()) return set_watchdog_states({}, 0, rank_, ranks, mail);
  const HostRanks host(MPI_COMM_WORLD);
  states_ = host.share(host.size * int64_t{sizeof(RankState)});
  set_watchdog_states({reinterpret_cast<RankState*>(states_.data()), static_cast<size_t>(host.size)}, host.rank, rank_,
                      ranks, host.size < ranks ? mail : WatchdogMail());
}

namespace {
constexpr int question_tag = 1, answer_tag = 2;

// A rank's state as it is told to another host, whose clock is another: times are how long ago.
struct Report {
  int64_t since_ago, step;
  bool inside;
  std::array<char, std::tuple_size_v<decltype(RankState::collective)>> collective;
};
}  // namespace

void Mpi::answer(const RankState& own) const {
  for (int asked = 0;;) {
    MPI_Status status;
    if (MPI_Iprobe(MPI_ANY_SOURCE, question_tag, mail_, &asked, &status) != MPI_SUCCESS || !asked) return;
    MPI_Recv(nullptr, 0, MPI_BYTE, status.MPI_SOURCE, question_tag, mail_, MPI_STATUS_IGNORE);
    Report report{steady_now() - own.since, own.step, own.inside, {}};
    own.name().copy(report.collective.data(), report.collective.size() - 1);
    MPI_Send(&report, sizeof report, MPI_BYTE, status.MPI_SOURCE, answer_tag, mail_);
  }
}

// What is still under way in the end is left there: the program is about to.
void Mpi::ask(std::span<RankState> of_rank, const std::function<bool()>& wait) const {
  static std::vector<Report> reports;
  static std::vector<MPI_Request> questions, answers;
  reports.resize(of_rank.size());
  questions.resize(of_rank.size(), MPI_REQUEST_NULL);
  answers.resize(of_rank.size(), MPI_REQUEST_NULL);
  for (size_t r = 0; r < of_rank.size(); ++r) {
    if (of_rank[r].alive >= 0) continue;
    MPI_Irecv(&reports[r], sizeof(Report), MPI_BYTE, static_cast<int>(r), answer_tag, mail_, &answers[r]);
    MPI_Isend(nullptr, 0, MPI_BYTE, static_cast<int>(r), question_tag, mail_, &questions[r]);
  }
  for (bool missing = true; missing && wait();) {
    missing = false;
    for (size_t r = 0; r < of_rank.size(); ++r) {
      int come = 0;
      if (answers[r] == MPI_REQUEST_NULL) continue;
      if (MPI_Test(&answers[r], &come, MPI_STATUS_IGNORE) != MPI_SUCCESS || !come) {
        missing = true;
        continue;
      }
      RankState& s = of_rank[r];
      s.alive = steady_now();
      s.since = s.alive - reports[r].since_ago;
      s.step = reports[r].step;
      s.inside = reports[r].inside;
      s.set_name(reports[r].collective.data());
    }
  }
}

std::unique_ptr<Communicator::State> Communicator::State::derive(MPI_Comm of, std::string called) const {
  auto state = std::make_unique<State>();
  state->mpi = mpi;
  state->comm = of;
  state->group = std::move(called);
  state->sent = sent;
  state->look_around();
  return state;
}

// From `comm` to what is known of it.
void Communicator::State::look_around() {
  MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &size);
  const HostRanks here(comm);
  local_rank = here.rank;
  local_size = here.size;
  if (size == 1 || local_size < size || !shared_memory_wanted()) return;
  // A rank that waits lets MPI go on with messages of its other groups, and gives its core away.
  const auto idle = [comm = comm] {
    int arrived = 0;
    MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, comm, &arrived, MPI_STATUS_IGNORE);
    sched_yield();
  };
  host = std::make_unique<HostExchange>(here.share(HostExchange::bytes_for(size)), rank, size, world_rank, idle);
}

void Communicator::State::check(int code, const char* name) const {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail(ErrorKind::peer, "{} failed: {}; look at the first error of the other ranks", collective_text(name, group),
       std::string_view(text, length));
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

// A thread beside the main one looks now and then, and sleeps in between: spinning would take a core from who computes.
int Communicator::State::wait(MPI_Request& request, MPI_Status& status) {
  if (!stop) return MPI_Wait(&request, &status);
  for (int arrived = 0;;) {
    const int code = MPI_Test(&request, &arrived, &status);
    if (code != MPI_SUCCESS || arrived) return code;
    if (*stop) fail(ErrorKind::peer, "another error ends this rank");
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

// Waits for all requests, of which the first expected.size() receive that many bytes each. One by one, because
// MPI_Waitall of Open MPI 4.1 may spin for ever when one of them fails; errors are kept until no request uses a buffer.
void Communicator::State::finish(const char* name, std::vector<MPI_Request>& requests,
                                 const std::vector<int>& expected) const {
  int first_error = MPI_SUCCESS;
  std::string wrong_size;
  for (size_t i = 0; i < requests.size(); ++i) {
    MPI_Status status;
    const int code = wait(requests[i], status);
    if (first_error == MPI_SUCCESS) first_error = code;
    if (code != MPI_SUCCESS || i >= expected.size()) continue;
    int got = 0;
    MPI_Get_count(&status, MPI_BYTE, &got);
    if (got != expected[i] && wrong_size.empty())
      wrong_size = fmt::format("rank {} sent {} bytes where {} are due", status.MPI_SOURCE, got, expected[i]);
  }
  check(first_error, name);
  if (!wrong_size.empty())
    fail(ErrorKind::peer, "{}: {}: the ranks' shapes differ", collective_text(name, group), wrong_size);
}

// Rank r's block, [begins[r], begins[r + 1]) in units of `unit` bytes, to all ranks. `mine` may lie in its place in
// `all`.
void Communicator::State::gather_blocks(const char* name, const char* mine, const std::vector<int64_t>& begins,
                                        int64_t unit, char* all) const {
  if (host) return gather_on_host(name, mine, begins, unit, all);
  std::vector<Part> sends, receives;
  for (int r = 0; r < size; ++r) {
    sends.push_back({const_cast<char*>(mine), (begins[rank + 1] - begins[rank]) * unit});
    receives.push_back({all + begins[r] * unit, (begins[r + 1] - begins[r]) * unit});
  }
  exchange(name, sends, receives);
}

void Communicator::State::gather_on_host(const char* name, const char* mine, const std::vector<int64_t>& begins,
                                         int64_t unit, char* all) const {
  const std::string collective = collective_text(name, group);
  const uint64_t shape = shape_of(begins, unit);
  const auto bytes_of = [&](int r) { return (begins[r + 1] - begins[r]) * unit; };
  const int64_t longest = longest_of(begins) * unit;
  for (int64_t at = 0; at < std::max<int64_t>(longest, 1); at += HostExchange::slot_bytes) {
    const auto count_of = [&](int r) { return std::clamp<int64_t>(bytes_of(r) - at, 0, HostExchange::slot_bytes); };
    std::copy_n(mine + at, count_of(rank), host->slot());
    host->turn(collective, shape);
    for (int r = 0; r < size; ++r) {
      const char* const from = r == rank ? mine + at : host->slot_of(r);
      char* const to = all + begins[r] * unit + at;
      if (from != to) std::copy_n(from, count_of(r), to);
    }
  }
}

// mine := the sum over ranks of the rank's own block of `all`, piece by piece, so that little memory is needed. Each
// element's sum is in the order of ranks, so that pieces and blocks change no bit. `mine` may lie in its place in
// `all`.
void Communicator::State::reduce_blocks(const char* name, char* all, const std::vector<int64_t>& begins, DType dtype,
                                        char* mine) {
  const int64_t unit = size_of(dtype);
  const int64_t piece = std::max<int64_t>(1, (host ? HostExchange::slot_bytes : scratch_bytes) / size / unit);
  const int64_t longest = longest_of(begins);
  if (size > 1 && !host) scratch.resize(static_cast<size_t>(std::min(piece, longest) * unit * size));
  for (int64_t at = 0; at < std::max<int64_t>(longest, 1); at += piece) {
    const auto count_of = [&](int r) { return std::clamp<int64_t>(begins[r + 1] - begins[r] - at, 0, piece); };
    const int64_t count = count_of(rank);
    std::vector<Part> sends;
    for (int r = 0; r < size; ++r) sends.push_back({all + (begins[r] + at) * unit, count_of(r) * unit});
    const std::vector<const char*> parts =
        host ? pass_on_host(name, sends, piece * unit, shape_of(begins, unit)) : pass(name, sends);
    if (count > 0) sum_in_order(dtype, parts, count, mine + at * unit);
  }
}

// To each other rank its part of `sends`; returns what came from each, and the own one.
std::vector<const char*> Communicator::State::pass(const char* name, const std::vector<Part>& sends) {
  std::vector<Part> receives;
  std::vector<const char*> parts;
  const int64_t bytes = sends[rank].bytes;
  for (int r = 0; r < size; ++r) {
    receives.push_back({r == rank ? sends[r].data : scratch.data() + r * bytes, bytes});
    parts.push_back(receives[r].data);
  }
  exchange(name, sends, receives);
  return parts;
}

// … of at most `room` bytes each.
std::vector<const char*> Communicator::State::pass_on_host(const char* name, const std::vector<Part>& sends,
                                                           int64_t room, uint64_t shape) {
  for (int r = 0; r < size; ++r)
    if (r != rank) std::copy_n(sends[r].data, sends[r].bytes, host->slot() + r * room);
  host->turn(collective_text(name, group), shape);
  std::vector<const char*> parts;
  for (int r = 0; r < size; ++r) parts.push_back(r == rank ? sends[r].data : host->slot_of(r) + rank * room);
  return parts;
}

void Communicator::State::broadcast(const char* name, char* data, int64_t bytes, int root) const {
  if (size == 1) return;
  for (int64_t at = 0; at < bytes; at += message_bytes)
    check(MPI_Bcast(data + at, static_cast<int>(std::min(message_bytes, bytes - at)), MPI_BYTE, root, comm), name);
}

}  // namespace notellm
