#include "launch/new_notes.h"

#include <omp.h>

#include "data_pipeline/prepare.h"
#include "runtime/parallel_for.h"

namespace notellm {
namespace {

class NewNotes {
 public:
  NewNotes(const std::filesystem::path& shards, const NoteTable& known)
      : config_(prepared_config(shards)),
        tokenizer_(shards_tokenizer(shards, known)),
        prompt_(tokenizer_, config_.prompt),
        encoders_(omp_get_max_threads(), WordEncoder(tokenizer_)) {
    table_.prompt = known.prompt;
    table_.tokenizer_digest = known.tokenizer_digest;
  }

  void add(const std::vector<Note>& notes) {
    std::vector<NoteTokens> tokens(notes.size());
    parallel_for(std::ssize(notes),
                 [&](int64_t i) { tokens[i] = prompt_.tokens(encoders_[omp_get_thread_num()], notes[i]); });
    for (size_t i = 0; i < notes.size(); ++i) {
      table_.ids.push_back(notes[i].id);
      table_.titles.push_back(notes[i].title);
      table_.category_input.push_back(tokens[i].category_input);
      table_.hashtag_input.push_back(tokens[i].hashtag_input);
    }
  }

  const std::string& title_template() const { return config_.title; }
  NoteTable take() { return std::move(table_); }

 private:
  PrepareConfig config_;
  Tokenizer tokenizer_;
  Prompt prompt_;
  std::vector<WordEncoder> encoders_;
  NoteTable table_;
};

}  // namespace

NoteTable tokenize_notes(const std::filesystem::path& shards, const NoteTable& known, const std::vector<Note>& notes) {
  NewNotes all(shards, known);
  all.add(notes);
  return all.take();
}

NoteTable tokenize_file(const std::filesystem::path& shards, const NoteTable& known,
                        const std::filesystem::path& file) {
  NewNotes all(shards, known);
  NoteReader reader(file, all.title_template());
  std::vector<Note> batch;
  while (reader.read(batch)) all.add(batch);
  return all.take();
}

}  // namespace notellm
