// The configuration of the stage and its report as text.
#include "data_pipeline/prepare.h"
#include "runtime/progress.h"

namespace notellm {

void PrepareConfig::fields(Fields& f) {
  f.add("notes", "notes.jsonl: one JSON object a line with id, title, content, category?, hashtags?", notes);
  f.add("title", "which fields of a line make its title", title);
  f.add("shards", "folder to write the shards to; replaced as a whole", shards);
  f.section("clicks", clicks);
  f.section("cooccurrence", cooccurrence);
  f.section("tokenizer", tokenizer);
  f.section("prompt", prompt);
  f.add("notes_per_shard", "notes in one file", notes_per_shard, between(1, 1 << 20));
  f.add("pairs_per_shard", "training pairs, and test pairs, in one file", pairs_per_shard, between(1, 1 << 24));
  f.add("memory_mb", "memory of each rank", memory_mb, at_least(1));
}

std::string PrepareReport::describe() const {
  if (up_to_date) return fmt::format("shards are up to date: {} notes\n", format_count(set.notes));
  std::string text = fmt::format(
      "notes   {} lines, {} notes ({} without text skipped); {} categories, {} hashtags\n"
      "        cut: {} titles, {} contents, {} notes further (data.prompt.max_note_tokens)\n"
      "        left out: {} categories and {} hashtags (too long), {} hashtags (repeated, or over "
      "data.prompt.max_hashtags)\n"
      "tokens  vocabulary {}, {:.1f} tokens a note part\n"
      "clicks  {}\n",
      format_count(notes.lines), format_count(notes.notes), format_count(notes.empty),
      format_count(std::ssize(set.category_names)), format_count(hashtags), format_count(titles_cut),
      format_count(contents_cut), format_count(notes_shortened), format_count(categories_left_out),
      format_count(hashtags_left_out), format_count(hashtags_beyond), format_count(set.prompt.vocabulary),
      static_cast<double>(tokens) / static_cast<double>(set.notes), clicks.describe());
  for (const auto& [name, stats] : {std::pair{"train ", &train}, std::pair{"test  ", &test}})
    text += fmt::format(
        "{}  {} pairs of {} scored; dropped {} below the lower bound, {} above the upper, {} beyond the "
        "top\n",
        name, format_count(stats->pairs), format_count(stats->scored), format_count(stats->low),
        format_count(stats->high), format_count(stats->beyond));
  for (const auto& [stage, duration] : seconds) text += fmt::format("{:<16}{:8.2f} s\n", stage, duration);
  return text;
}

PrepareConfig prepared_config(const std::filesystem::path& folder) {
  PrepareConfig config;
  Fields fields;
  config.fields(fields);
  read_config_text(fields, read_shard_set(folder).config, (folder / shard_set_file_name).string(), {});
  config.shards = folder.string();
  return config;
}

}  // namespace notellm
