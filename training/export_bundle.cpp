#include "training/export_bundle.h"

#include <nlohmann/json.hpp>
#include <sstream>

#include "data_pipeline/prompt.h"
#include "runtime/files.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

std::string text_of(const Json& json) { return json.dump(2) + "\n"; }

constexpr const char* measures[] = {"recall_10", "recall_100", "recall_1000", "recall_10000", "mrr"};

// A row of Markdown; a value that is not there is a dash.
std::string table_row(const std::string& first, const Json& values) {
  std::string row = "| " + first + " |";
  for (const char* name : measures)
    row += values.contains(name) && values[name].is_number()
               ? fmt::format(" {:.2f} % |", 100 * values[name].get<double>())
               : " – |";
  return row + "\n";
}

constexpr const char* table_head =
    "| | Recall@10 | Recall@100 | Recall@1k | Recall@10k | MRR |\n|---|---|---|---|---|---|\n";

std::string table_of_report(const fs::path& path) {
  const Json report = Json::parse(read_file(path), nullptr, false);
  try {
    const Json& all = report.at("slices").at("all");
    std::string text = fmt::format("Of {} test pairs, over a pool of {} notes:\n\n{}", all.at("pairs").get<int64_t>(),
                                   report.at("pool").get<int64_t>(), table_head);
    for (const auto& [method, values] : all.at("methods").items()) text += table_row(method, values);
    return text;
  } catch (const Json::exception&) {
    fail(ErrorKind::data, "{} is not a report of 'notellm evaluate --json'", path.string());
  }
}

std::string table_of_metrics(const fs::path& path, int64_t last_step) {
  if (!fs::exists(path)) return "";
  std::istringstream lines(read_file(path));
  Json newest;
  for (std::string line; std::getline(lines, line);) {
    const Json json = Json::parse(line, nullptr, false);
    if (json.is_object() && json.contains("recall_100") && json.value("step", int64_t{0}) <= last_step) newest = json;
  }
  if (newest.is_null()) return "";
  return fmt::format("Of a sample of test pairs, after step {}:\n\n{}{}", newest["step"].dump(), table_head,
                     table_row("notellm", newest));
}

std::string prompt_example(const PromptConfig& config) {
  Note note;
  note.title = "TITLE";
  note.content = "CONTENT";
  note.hashtags = {"TOPIC", "TOPIC"};
  const PromptText text = prompt_text(config.preset, Task::category, note);
  return text.instruction + text.note;
}

// As JSON has it, and Python.
std::string text_literal(const std::string& text) { return Json(text).dump(); }

// What stands between a note and its prompt in 'notellm prepare' and 'embed', and not in encode().
std::string fitting(const PrepareConfig& data) {
  const PromptConfig& prompt = data.prompt;
  return fmt::format(
      R"(`notellm embed` makes titles by the template
`{}`, cuts them to {} tokens and contents to {}, takes at most {} hashtags, keeps all of it to {} tokens from behind the
instruction on, and makes each run of white space in contents and hashtags one space. `encode` takes texts as they are:
of a note that none of this changes it gives the same vector.)",
      text_literal(data.title), prompt.title_tokens, prompt.content_tokens, prompt.max_hashtags,
      prompt.max_note_tokens);
}

Json added_token(const std::string& content) {
  return {{"content", content}, {"lstrip", false},      {"normalized", false},
          {"rstrip", false},    {"single_word", false}, {"special", true}};
}

std::string sentence_piece_config(const Tokenizer& tokenizer, int context) {
  Json added = Json::object();
  for (const int32_t id : {*tokenizer.bos(), tokenizer.eos(), tokenizer.emb()})
    added[std::to_string(id)] = added_token(tokenizer.piece(id));
  return text_of({{"tokenizer_class", "LlamaTokenizer"},
                  {"legacy", false},
                  {"add_bos_token", true},
                  {"add_eos_token", false},
                  {"bos_token", tokenizer.piece(*tokenizer.bos())},
                  {"eos_token", tokenizer.piece(tokenizer.eos())},
                  {"pad_token", tokenizer.piece(tokenizer.eos())},
                  {"additional_special_tokens", {tokenizer.piece(tokenizer.emb())}},
                  {"added_tokens_decoder", added},
                  {"clean_up_tokenization_spaces", false},
                  {"model_max_length", context}});
}

// One more special token of a tokenizer.json.
void add_emb(Json& tokenizer, int32_t id) {
  Json token = {{"id", id}};
  token.update(added_token(std::string(emb_piece)));
  tokenizer["added_tokens"].push_back(token);
}

// A note's vector is the last token's, which must be its text's: tokens that a template puts behind texts go. Returns
// whether there were any.
bool remove_ends(Json& processor) {
  if (processor.is_null()) return false;
  bool removed = false;
  if (processor.at("type") == "Sequence")
    for (Json& step : processor.at("processors")) removed = remove_ends(step) || removed;
  if (processor.at("type") != "TemplateProcessing") return removed;
  Json open = Json::array();
  for (const Json& part : processor.at("single")) {
    open.push_back(part);
    if (part.contains("Sequence")) break;
  }
  removed = open != processor.at("single");
  processor["single"] = std::move(open);
  return removed;
}

}  // namespace

std::string generation_config(const Tokenizer& tokenizer) {
  return text_of({{"bos_token_id", tokenizer.bos() ? Json(*tokenizer.bos()) : Json()},
                  {"eos_token_id", tokenizer.eos()},
                  {"do_sample", false}});
}

TokenizerFiles exported_tokenizer(const Tokenizer& tokenizer, int context) {
  TokenizerFiles files = tokenizer.files();
  std::string& config = files[tokenizer_file_names[2]];
  if (files.contains(tokenizer_file_names[0])) {
    config = sentence_piece_config(tokenizer, context);
    return files;
  }
  std::string& json = files.at(tokenizer_file_names[1]);
  Json changed = Json::parse(json);
  bool changes = changed.contains("post_processor") && remove_ends(changed["post_processor"]);
  if (!tokenizer.has_own_emb()) {
    add_emb(changed, tokenizer.emb());
    changes = true;
  }
  if (changes) json = changed.dump() + "\n";
  Json values = Json::parse(config);
  if (values.contains("add_eos_token")) values["add_eos_token"] = false;
  if (!values.contains("pad_token") || values["pad_token"].is_null()) values["pad_token"] = values["eos_token"];
  // As tokenizer.json says: transformers 5 builds the tokenizers of other classes (LlamaTokenizer, GPT2Tokenizer) anew.
  values["tokenizer_class"] = "PreTrainedTokenizerFast";
  values["model_max_length"] = context;
  if (values.contains("added_tokens_decoder"))
    values["added_tokens_decoder"][std::to_string(tokenizer.emb())] = added_token(std::string(emb_piece));
  config = text_of(values);
  return files;
}

std::vector<std::pair<std::string, std::string>> sentence_transformers_files(const ModelConfig& config) {
  const auto module = [](int i, const char* path, const char* type) {
    return Json{{"idx", i},
                {"name", std::to_string(i)},
                {"path", path},
                {"type", fmt::format("sentence_transformers.models.{}", type)}};
  };
  const Json modules = {module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling"), module(2, "2_Dense", "Dense"),
                        module(3, "3_Normalize", "Normalize")};
  const Json pooling = {{"word_embedding_dimension", config.dim}, {"pooling_mode_cls_token", false},
                        {"pooling_mode_mean_tokens", false},      {"pooling_mode_max_tokens", false},
                        {"pooling_mode_lasttoken", true},         {"include_prompt", true}};
  const Json dense = {{"in_features", config.dim},
                      {"out_features", config.note_dim},
                      {"bias", false},
                      {"activation_function", "torch.nn.modules.linear.Identity"}};
  return {{"modules.json", text_of(modules)},
          {"sentence_bert_config.json", text_of({{"max_seq_length", config.context}, {"do_lower_case", false}})},
          {"config_sentence_transformers.json",
           text_of({{"prompts", Json::object()}, {"default_prompt_name", nullptr}, {"similarity_fn_name", "cosine"}})},
          {"1_Pooling/config.json", text_of(pooling)},
          {"2_Dense/config.json", text_of(dense)},
          {"3_Normalize/config.json", text_of(Json::object())}};
}

std::string measured_recall(const fs::path& checkpoint, const fs::path& report) {
  if (!report.empty()) return table_of_report(report);
  return table_of_metrics(checkpoint.parent_path().parent_path() / "metrics.jsonl",
                          read_manifest(checkpoint).position.step);
}

std::string model_card(const CheckpointInfo& checkpoint, const std::string& measured) {
  const ModelConfig& m = checkpoint.config.model;
  const PrepareConfig& data = checkpoint.config.data;
  return fmt::format(R"(---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, note-recommendation, notellm]
---

# Vectors of notes

A NoteLLM encoder (arXiv 2403.01744), written by `notellm export` after {} training steps: {} layers, dim {}, {} heads
({} of keys and values), {} tokens with `[EMB]`, vectors of {} numbers, length 1.

```python
from sentence_transformers import SentenceTransformer  # and sentencepiece

model = SentenceTransformer("path of this folder")
prompt = {}
vectors = model.encode([prompt])
```

A text is a note's prompt up to, not with, `[EMB]`. {} Notes that users click one after the other have vectors with a
high cosine. The same model generates: `AutoModelForCausalLM` on the prompt, `[EMB]` and what asks for the category or
the hashtags.

## Measured

{}
## Configuration of the run

```yaml
{}```
)",
                     checkpoint.manifest.position.step, m.layers, m.dim, m.heads, m.kv_heads,
                     checkpoint.manifest.tokens_in_use, m.note_dim, text_literal(prompt_example(data.prompt)),
                     fitting(data), measured.empty() ? "Nothing: no report was given to the export.\n" : measured,
                     print_run_config(checkpoint.config));
}

}  // namespace notellm
