// A small random model as the Hugging Face hub has one: config.json, safetensors, tokenizer.model.
#pragma once

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>

#include "data_pipeline/tokenizer.h"
#include "model/parameters.h"
#include "runtime/half.h"
#include "tests/support/write_safetensors.h"

namespace notellm::test {

// The model file of a trained tokenizer of 300 tokens.
inline const std::string& hub_tokenizer() {
  static const std::string model = [] {
    std::vector<std::string> texts;
    for (int i = 0; i < 40; ++i) texts.push_back("some words about note " + std::to_string(i) + " and other things");
    return Tokenizer::train(texts, 300);
  }();
  return model;
}
inline int64_t hub_tokens() { return Tokenizer::from_model(hub_tokenizer(), "test").emb(); }

inline const nlohmann::json hub_llama3_rope = {{"rope_type", "llama3"},
                                               {"factor", 8.0},
                                               {"low_freq_factor", 1.0},
                                               {"high_freq_factor", 4.0},
                                               {"original_max_position_embeddings", 64}};

struct HubModel {
  nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                           {"model_type", "llama"},
                           {"hidden_size", 8},
                           {"num_hidden_layers", 2},
                           {"num_attention_heads", 4},
                           {"num_key_value_heads", 2},
                           {"intermediate_size", 12},
                           {"vocab_size", hub_tokens()},
                           {"max_position_embeddings", 128},
                           {"rms_norm_eps", 1e-5},
                           {"rope_theta", 10000.0},
                           {"hidden_act", "silu"},
                           {"tie_word_embeddings", true},
                           {"torch_dtype", "float32"}};
  DType dtype = DType::f32;
  std::map<std::string, std::pair<std::vector<int64_t>, std::string>> tensors;  // name → shape, bytes

  // Random weights of the parameters that the configuration asks for.
  void fill() {
    ModelConfig c;
    c.dim = config["hidden_size"];
    c.layers = config["num_hidden_layers"];
    c.heads = config["num_attention_heads"];
    c.kv_heads = config["num_key_value_heads"];
    c.ffn = config["intermediate_size"];
    c.tied_head = config["tie_word_embeddings"];
    c.qkv_bias = config["architectures"][0] == "Qwen2ForCausalLM";
    c.finish();
    std::mt19937 random(7);
    const ParameterLayout layout(c, config["vocab_size"]);
    for (const Parameter& p : layout.all()) {
      if (p.name.starts_with("note_head.")) continue;
      const int64_t cols = p.all_cols ? p.all_cols : 1;
      std::vector<int64_t> shape = {p.all_rows};
      if (p.all_cols) shape.push_back(p.all_cols);
      tensors[p.name] = {shape, random_bytes(p.all_rows * cols, random)};
    }
  }

  std::string random_bytes(int64_t elements, std::mt19937& random) const {
    std::normal_distribution<float> normal;
    std::string bytes(static_cast<size_t>(elements * size_of(dtype)), '\0');
    for (int64_t i = 0; i < elements; ++i) put(bytes, i, normal(random));
    return bytes;
  }
  void put(std::string& bytes, int64_t i, float value) const {
    char* to = bytes.data() + i * size_of(dtype);
    const bf16 brain(value);
    const f16 half = to_f16(value);
    if (dtype == DType::f32) std::memcpy(to, &value, 4);
    if (dtype == DType::bf16) std::memcpy(to, &brain, 2);
    if (dtype == DType::f16) std::memcpy(to, &half, 2);
  }

  NamedTensor tensor(const std::string& name) const {
    const auto& [shape, bytes] = tensors.at(name);
    Tensor t(const_cast<char*>(bytes.data()), dtype, {});
    t.dims = static_cast<int>(shape.size());
    std::ranges::copy(shape, t.shape.begin());
    return {name, t};
  }

  // In one file, or with an index in several.
  void write(const std::filesystem::path& folder, int files = 1) const {
    std::filesystem::create_directories(folder);
    write_file(folder / "config.json", config.dump(1));
    write_file(folder / "tokenizer.model", hub_tokenizer());
    std::vector<std::vector<NamedTensor>> of_files(static_cast<size_t>(files));
    nlohmann::json map;
    size_t i = 0;
    for (const auto& [name, value] : tensors) {
      map[name] = fmt::format("part-{}.safetensors", i % of_files.size());
      of_files[i++ % of_files.size()].push_back(tensor(name));
    }
    if (files == 1) return write_safetensors(folder / "model.safetensors", of_files[0], {{"format", "pt"}});
    for (size_t f = 0; f < of_files.size(); ++f)
      write_safetensors(folder / fmt::format("part-{}.safetensors", f), of_files[f]);
    write_file(folder / "model.safetensors.index.json", nlohmann::json{{"weight_map", map}}.dump());
  }
};

}  // namespace notellm::test
