// How long a step waits for a checkpoint of 100 million parameters (1.2 GB): for the snapshot alone, and for the whole
// save.
//
//   bench_checkpoint FOLDER [SAVES]      FOLDER: where the run goes, and is removed again
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "runtime/files.h"
#include "runtime/log.h"
#include "runtime/stopwatch.h"
#include "training/checkpoint_writer.h"

int main(int argc, char** argv) {
  using namespace notellm;
  if (argc < 2) {
    std::fprintf(stderr, "bench_checkpoint FOLDER [SAVES]\n");
    return 2;
  }
  const std::filesystem::path folder = std::filesystem::path(argv[1]) / "bench_checkpoint";
  const int saves = argc > 2 ? std::atoi(argv[2]) : 9;
  spdlog::set_level(spdlog::level::warn);
  std::filesystem::create_directories(folder);
  write_file(folder / tokenizer_file_names[0], "none");
  RunConfig config;
  config.data.shards = folder;
  config.train.run = folder / "run";
  config.train.keep_checkpoints = 1;
  config.model.dim = 768;
  config.model.layers = 14;
  config.model.heads = config.model.kv_heads = 12;
  config.model.head_dim = 64;
  config.model.ffn = 2048;
  NoteTable notes;
  notes.prompt.vocabulary = 1000;
  Communicator self = Communicator::self();
  Mesh mesh(self, 1);
  TrainingState state(config, notes.prompt, mesh);
  CheckpointWriter writer(config, notes, state);
  Stream stream;
  std::vector<double> snapshots, wholes;
  for (int i = 0; i < saves; ++i) {
    std::ranges::fill(state.optimizer.weights().span<float>(), static_cast<float>(i));
    const Stopwatch watch;
    writer.begin(stream, {i, i, 0});
    snapshots.push_back(watch.seconds());
    writer.finish();
    wholes.push_back(watch.seconds());
  }
  std::filesystem::remove_all(folder);
  std::ranges::sort(snapshots);
  std::ranges::sort(wholes);
  const double snapshot = snapshots[snapshots.size() / 2], whole = wholes[wholes.size() / 2];
  std::printf(
      "%.1f M parameters; medians of %d: snapshot %.3f s (%.3f to %.3f), whole save %.2f s (%.2f to %.2f): %.1f %%\n",
      static_cast<double>(state.layout.size()) / 1e6, saves, snapshot, snapshots.front(), snapshots.back(), whole,
      wholes.front(), wholes.back(), 100 * snapshot / whole);
}
