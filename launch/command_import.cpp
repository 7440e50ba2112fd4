#include "launch/commands.h"
#include "training/import.h"

namespace notellm {

void add_import(CLI::App& app, Action& chosen) {
  struct Options {
    std::string source, destination, config;
    std::vector<std::string> overrides;
  };
  CLI::App* command = app.add_subcommand("import", "a model of the Hugging Face hub, as a checkpoint to begin with");
  command->footer(
      R"(Reads a folder with config.json, safetensors (one, or sharded with an index; f32, bf16, f16) and
tokenizer.json or tokenizer.model of LlamaForCausalLM, MistralForCausalLM or Qwen2ForCausalLM, and writes a checkpoint:
[EMB] is added as the mean of the tokens, and a note head by seed, model.note_dim and model.init. A few MiB
of memory are enough for models of any size. Train from it with model.from and data.tokenizer.model.
Example: notellm import hub/SmolLM-135M models/pretrained --set model.note_dim=128
         notellm prepare configs/pretrained.yaml
         notellm train configs/pretrained.yaml)");
  auto options = std::make_shared<Options>();
  command->add_option("source", options->source, "folder of the model, as downloaded")->required()->type_name("DIR");
  command->add_option("destination", options->destination, "checkpoint folder to write; must not be there")
      ->required()
      ->type_name("OUT");
  command->add_option("--config", options->config, "YAML file of a run, for seed, model.note_dim, model.init")
      ->type_name("CONFIG");
  command->add_option("--set", options->overrides, "override keys: --set seed=2 model.note_dim=64")
      ->type_name("KEY=VALUE");
  command->callback([options, &chosen] {
    chosen = [options](Communicator& ranks) {
      if (ranks.rank() == 0) import_model(options->source, options->destination, options->config, options->overrides);
      return 0;
    };
  });
}

}  // namespace notellm
