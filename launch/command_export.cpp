#include <limits>

#include "launch/commands.h"
#include "training/export.h"

namespace notellm {

void add_export(CLI::App& app, Action& chosen) {
  struct Options {
    std::string checkpoint, destination, type;
    ExportOptions how;
  };
  CLI::App* command =
      app.add_subcommand("export", "a checkpoint as a model for transformers and sentence-transformers");
  command->footer(
      R"(Writes config.json, safetensors, the tokenizer, generation_config.json, README.md (a model card with the
run's configuration and what it measured), and the modules with which sentence-transformers gives the vectors
of 'notellm embed'. Of the embedding the tokens in use and [EMB] are written, without padding.
Example: notellm export runs/demo exported --dtype bf16
         python3 -c 'from sentence_transformers import SentenceTransformer as S; S("exported").encode([…])')");
  auto options = std::make_shared<Options>();
  command->add_option("checkpoint", options->checkpoint, "folder of a checkpoint, or of a run (its newest)")
      ->required()
      ->type_name("CHECKPOINT");
  command->add_option("destination", options->destination, "folder to write; must not be there")
      ->required()
      ->type_name("DIR");
  command
      ->add_option("--dtype", options->type,
                   "f32, bf16 or f16; default: model.export_type, the type that was imported, else f32")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}).description(""));
  command->add_option("--shard-size", options->how.file_bytes, "most bytes of a safetensors file: 5GB, 500MB")
      ->transform(CLI::AsSizeValue(true).description(""))
      ->check(CLI::Range(int64_t{1}, std::numeric_limits<int64_t>::max()).description(""))
      ->default_str("5GB");
  command->add_option("--report", options->how.report, "numbers of 'notellm evaluate --json', for the model card")
      ->type_name("FILE");
  command->callback([options, &chosen] {
    if (!options->type.empty())
      options->how.type = options->type == "f32"    ? ExportType::f32
                          : options->type == "bf16" ? ExportType::bf16
                                                    : ExportType::f16;
    chosen = [options](Communicator& ranks) {
      if (ranks.rank() == 0) export_model(options->checkpoint, options->destination, options->how);
      return 0;
    };
  });
}

}  // namespace notellm
