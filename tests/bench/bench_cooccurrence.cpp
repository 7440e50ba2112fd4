// The co-occurrence stage on a synthetic log; cooccurrence.sh compares it with DuckDB.
//
//   bench_cooccurrence generate LOG            writes the log (CSV user,note,timestamp)
//   bench_cooccurrence run LOG PAIRS MEMORY_MB  log -> pairs, written as (int32 query, int32 target, float score);
//   prints
//                                               a line of JSON with the seconds of each stage
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "data_pipeline/cooccurrence.h"

namespace notellm {
namespace {

constexpr int64_t notes = 1'000'000, users = 828'000;
constexpr double mean_notes = 12.2;  // of a user

// Notes are clicked by Zipf's law with exponent 0.8, popular ones anywhere among the ids; a user has at least 2
// different notes, and geometrically distributed numbers of them beyond, to 100.
void generate(const std::string& file) {
  std::mt19937_64 random(1);
  std::vector<double> share(notes);
  for (int64_t i = 0; i < notes; ++i) share[i] = std::pow(static_cast<double>(i + 1), -0.8);
  std::discrete_distribution<int32_t> popularity(share.begin(), share.end());
  std::vector<int32_t> note_of(notes);
  for (int64_t i = 0; i < notes; ++i) note_of[i] = static_cast<int32_t>(i);
  std::shuffle(note_of.begin(), note_of.end(), random);
  std::geometric_distribution<int> more(1.0 / (mean_notes - 1.0));
  std::ofstream out(file);
  std::vector<int32_t> list;
  int64_t clicks = 0;
  for (int64_t user = 0; user < users; ++user) {
    const size_t wanted = std::min(2 + more(random), 100);
    list.clear();
    while (list.size() < wanted) {
      const int32_t note = note_of[popularity(random)];
      if (std::find(list.begin(), list.end(), note) == list.end()) list.push_back(note);
    }
    for (size_t i = 0; i < wanted; ++i) out << fmt::format("{},{},{}\n", 1'000'000 + user, list[i], 1'700'000'000 + i);
    clicks += static_cast<int64_t>(wanted);
  }
  out.close();
  if (!out) fail(ErrorKind::io, "{}: cannot be written", file);
  std::cout << fmt::format("{} users, {} clicks, {} notes\n", users, clicks, notes);
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void run(const std::string& log, const std::string& pairs_file, int64_t memory_mb) {
  const double start = now();
  NoteIndex index;
  for (int64_t i = 0; i < notes; ++i) index.add(std::to_string(i));
  const double indexed = now();
  ClicksConfig clicks;
  clicks.files = {log};
  clicks.format = ClickFormat::csv;
  clicks.heldout_share = 0;
  const auto folder = std::filesystem::path(pairs_file).parent_path();
  const ClickLists lists = read_clicks(clicks, index, folder.empty() ? "." : folder, memory_mb << 20);
  std::ofstream out(pairs_file, std::ios::binary);
  Communicator self = Communicator::self();
  const CooccurrenceStats stats =
      cooccurrence(self, lists, Split::train, CooccurrenceConfig{}, memory_mb << 20, [&](std::span<const Pair> pairs) {
        out.write(reinterpret_cast<const char*>(pairs.data()), static_cast<std::streamsize>(pairs.size_bytes()));
      });
  out.close();
  if (!out) fail(ErrorKind::io, "{}: cannot be written", pairs_file);
  std::cout
      << fmt::format(
             R"({{"seconds":{:.3f},"index":{:.3f},"parse":{:.3f},"filter":{:.3f},"cooccurrence":{:.3f},"ranges":{},"clicks":{},)"
             R"("kept_clicks":{},"stopped_notes":{},"triples":{},"scored":{},"pairs":{}}})",
             now() - start, indexed - start, lists.stats().parse_seconds, lists.stats().filter_seconds, stats.seconds,
             stats.ranges, lists.stats().clicks, lists.stats().kept_clicks[0], lists.stats().stopped_notes,
             stats.triples, stats.scored, stats.pairs)
      << std::endl;
}

}  // namespace
}  // namespace notellm

int main(int argc, char** argv) {
  try {
    if (argc == 3 && !std::strcmp(argv[1], "generate")) {
      notellm::generate(argv[2]);
    } else if (argc == 5 && !std::strcmp(argv[1], "run")) {
      notellm::run(argv[2], argv[3], std::stoll(argv[4]));
    } else {
      std::cerr << "usage: bench_cooccurrence generate LOG | run LOG PAIRS MEMORY_MB\n";
      return 2;
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
