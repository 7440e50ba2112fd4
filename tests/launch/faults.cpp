// Part of failing_notellm: the program, with a fault of the environment's choice in the middle of a step. The linker
// puts these functions in place of the program's (--wrap).
//
//     NOTELLM_TEST_FAULT="WAY RANK STEP COLLECTIVE", steps from 1; in that collective of a training step
//     throw, kill, stop, hang: what happens to the rank; skip: it does not take part; nan: so in this step and all
//     after
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <sstream>
#include <thread>

#include "runtime/communicator.h"
#include "runtime/watchdog.h"

using namespace notellm;

namespace {

struct Fault {
  std::string way, collective;
  int rank = -1;
  int64_t step = 0;
  Fault() {
    std::istringstream text(std::getenv("NOTELLM_TEST_FAULT") ? std::getenv("NOTELLM_TEST_FAULT") : "");
    text >> way >> rank >> step >> std::ws;
    std::getline(text, collective);
  }
};
int64_t step = 1;  // that runs; the collective "signal" ends each

bool now(const char* name) {
  static const Fault fault;
  static const int rank = std::getenv("OMPI_COMM_WORLD_RANK") ? std::atoi(std::getenv("OMPI_COMM_WORLD_RANK")) : 0;
  return rank == fault.rank && (step == fault.step || (fault.way == "nan" && step > fault.step)) &&
         fault.collective == name;
}
bool now(const char* way, const char* name) {
  static const Fault fault;
  return fault.way == way && now(name);
}

void fail_in(const char* name) {
  if (now("throw", name)) fail(ErrorKind::data, "a seeded error");
  if (now("kill", name)) raise(SIGKILL);
  if (now("stop", name)) raise(SIGSTOP);
  if (now("hang", name)) std::this_thread::sleep_for(std::chrono::hours(1));
}

void spoil(const Tensor& t) {
  for (float& x : t.span<float>().first(1)) x = std::numeric_limits<float>::quiet_NaN();
}

}  // namespace

#define WATCHED "_ZN7notellm17WatchedCollectiveC1EPKcRKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"
#define ALL_REDUCE "_ZN7notellm12Communicator14all_reduce_sumERNS_6StreamEPKcNS_6TensorE"
#define REDUCE_SCATTER \
  "_ZN7notellm12Communicator19reduce_scatter_rowsERNS_6StreamEPKcNS_6TensorESt4spanIKlLm18446744073709551615EES5_"

void real_watched(void* self, const char* name, const std::string& group) asm("__real_" WATCHED);
void watched(void* self, const char* name, const std::string& group) asm("__wrap_" WATCHED);
void watched(void* self, const char* name, const std::string& group) {
  fail_in(name);
  real_watched(self, name, group);
  if (std::strcmp(name, "signal") == 0) ++step;
}

void real_all_reduce(Communicator*, Stream&, const char*, Tensor) asm("__real_" ALL_REDUCE);
void all_reduce(Communicator*, Stream&, const char*, Tensor) asm("__wrap_" ALL_REDUCE);
void all_reduce(Communicator* self, Stream& stream, const char* name, Tensor t) {
  if (now("skip", name)) return;
  if (now("nan", name)) spoil(t);
  real_all_reduce(self, stream, name, t);
}

void real_reduce_scatter(Communicator*, Stream&, const char*, Tensor, std::span<const int64_t>,
                         Tensor) asm("__real_" REDUCE_SCATTER);
void reduce_scatter(Communicator*, Stream&, const char*, Tensor, std::span<const int64_t>,
                    Tensor) asm("__wrap_" REDUCE_SCATTER);
void reduce_scatter(Communicator* self, Stream& stream, const char* name, Tensor all, std::span<const int64_t> rows_of,
                    Tensor mine) {
  if (now("skip", name)) return;
  if (now("nan", name)) spoil(all);
  real_reduce_scatter(self, stream, name, all, rows_of, mine);
}
