#include "tests/softgpu/findings.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "tests/softgpu/at_end.h"

namespace softgpu {
namespace {

constexpr int exit_code = 99;

struct Finding {
  std::string text;  // two lines
  int64_t times = 1;
};
struct Findings {
  std::mutex mutex;
  std::map<std::string, size_t> index;  // by kind, kernel and source line
  std::vector<Finding> list;
  std::string shown;  // what softgpu_finding returned last
};
// Never destroyed: work may be found wrong until the very end.
Findings& findings() {
  static Findings& all = *new Findings;
  return all;
}

std::string rank_prefix() {
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  return rank ? std::string("[rank ") + rank + "] " : "";
}

std::string triple(const int64_t (&x)[3]) {
  std::string text(1, '(');  // one piece after the other: gcc 12 warns of overlaps in "(" + …
  text.append(std::to_string(x[0])).append(", ").append(std::to_string(x[1])).append(", ");
  return text.append(std::to_string(x[2])).append(")");
}

std::string text_of(FindingKind kind, const Place& place, const std::string& text) {
  std::string result = "softgpu: " + rank_prefix() + name_of(kind);
  if (!place.kernel.empty()) result += " in " + place.kernel;
  if (!place.file.empty()) result += " at " + place.file + ":" + std::to_string(place.line);
  if (!place.inlined_file.empty()) {
    result += " (inlined: " + place.inlined_file.substr(place.inlined_file.rfind('/') + 1) + ":";
    result += std::to_string(place.inlined_line) + ")";
  }
  if (place.block[0] >= 0) result += ", block " + triple(place.block);
  if (place.thread[0] >= 0) result += ", thread " + triple(place.thread);
  return result + "\n         " + text + "\n";
}

// Registered first when the library is loaded, so that it runs after everything that the program does at its end. A
// process that gives up (status != 0) need not tidy up: what it still holds is no finding.
void at_end(int status, void*) {
  if (status == 0)
    for (void (*check)() : end_checks()) check();
  Findings& all = findings();
  const std::lock_guard lock(all.mutex);
  if (all.list.empty()) return;
  int64_t times = 0;
  for (const Finding& finding : all.list) times += finding.times;
  std::fflush(nullptr);
  std::fprintf(stderr, "softgpu: %s%zu findings (%lld times): this process ends with exit code %d\n",
               rank_prefix().c_str(), all.list.size(), static_cast<long long>(times), exit_code);
  _exit(exit_code);
}

__attribute__((constructor(101))) void register_end() { on_exit(at_end, nullptr); }

}  // namespace

std::vector<void (*)()>& end_checks() {
  static auto& checks = *new std::vector<void (*)()>;
  return checks;
}

const char* name_of(FindingKind kind) {
  constexpr const char* names[] = {"out_of_bounds",    "misaligned",   "uninitialized", "race",
                                   "barrier",          "missing_wait", "stream_order",  "leak",
                                   "unchecked_launch", "invalid_call", "unsupported"};
  return names[static_cast<int>(kind)];
}

void report(FindingKind kind, const Place& place, const std::string& text) {
  std::string key = name_of(kind);
  key += '\n' + place.kernel + '\n' + place.file + '\n' + std::to_string(place.line);
  key += '\n' + place.inlined_file + '\n' + std::to_string(place.inlined_line);
  if (place.file.empty()) key += '\n' + text;  // no source line tells two of them apart
  Findings& all = findings();
  const std::lock_guard lock(all.mutex);
  const auto [known, is_new] = all.index.emplace(std::move(key), all.list.size());
  if (!is_new) {
    ++all.list[known->second].times;
    return;
  }
  all.list.push_back({text_of(kind, place, text)});
  std::fputs(all.list.back().text.c_str(), stderr);
}

}  // namespace softgpu

extern "C" {

int softgpu_finding_count() {
  auto& all = softgpu::findings();
  const std::lock_guard lock(all.mutex);
  return static_cast<int>(all.list.size());
}

const char* softgpu_finding(int i) {
  auto& all = softgpu::findings();
  const std::lock_guard lock(all.mutex);
  if (i < 0 || i >= static_cast<int>(all.list.size())) return "";
  all.shown = all.list[static_cast<size_t>(i)].text;
  return all.shown.c_str();
}

void softgpu_clear_findings() {
  auto& all = softgpu::findings();
  const std::lock_guard lock(all.mutex);
  all.index.clear();
  all.list.clear();
}

}  // extern "C"
