// Every kind of folder that must be refused on import, without a trace.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/expect_error.h"
#include "tests/support/import_test.h"
#include "training/checkpoint.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;
using test::hub_llama3_rope, test::HubModel;

class ImportRefused : public test::ImportTest {
 protected:
  // Refused with that message, and nothing is left.
  void expect_refused(ErrorKind kind, const std::string& message) {
    try {
      import();
      ADD_FAILURE() << "imported, but should say: " << message;
      fs::remove_all(checkpoint_);
    } catch (const Error& error) {
      EXPECT_EQ(static_cast<int>(error.kind()), static_cast<int>(kind)) << error.what();
      EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what() << "\nnot " << message;
    }
    EXPECT_FALSE(fs::exists(checkpoint_)) << message;
    EXPECT_FALSE(fs::exists(checkpoint_.string() + ".partial")) << message;
  }
  // A good model, then what makes it bad.
  void expect_bad(const std::string& message, const std::function<void(HubModel&)>& change, int files = 1) {
    HubModel model;
    model.fill();
    change(model);
    fs::remove_all(hub_);
    model.write(hub_, files);
    expect_refused(ErrorKind::checkpoint, message);
  }
  void expect_bad_folder(const std::string& message, const std::function<void()>& change, int files = 1,
                         ErrorKind kind = ErrorKind::checkpoint) {
    HubModel model;
    model.fill();
    fs::remove_all(hub_);
    model.write(hub_, files);
    change();
    expect_refused(kind, message);
  }
  void expect_bad_config(const std::string& message, const std::string& key, const nlohmann::json& value) {
    SCOPED_TRACE(key);
    expect_bad(message, [&](HubModel& m) { m.config[key] = value; });
  }
};

TEST_F(ImportRefused, KeysThatDisagreeAreRefused) {
  HubModel model;
  model.fill();
  model.write(hub_);
  EXPECT_ERROR(usage, "model.layers is 3, but " + hub_.string() + " has 2", import({"model.layers=3"}));
  EXPECT_ERROR(usage, "model.qkv_bias is true, but", import({"model.qkv_bias=true"}));
  import({"model.layers=2", "model.head_dim=0", "model.export_type=bf16"});
  EXPECT_EQ(verify_checkpoint(checkpoint_).config.model.export_type, ExportType::bf16);
}

TEST_F(ImportRefused, UnsupportedOptionsAreNamed) {
  expect_bad_config("the architecture GPT2LMHeadModel is not supported; supported are LlamaForCausalLM, Mistral",
                    "architectures", {"GPT2LMHeadModel"});
  expect_bad_config("architectures is null", "architectures", nullptr);
  expect_bad_config("hidden_act is \"gelu\", which is not supported: only \"silu\" is", "hidden_act", "gelu");
  expect_bad_config("attention_bias is true, which is not supported", "attention_bias", true);
  expect_bad_config("mlp_bias is true, which is not supported", "mlp_bias", true);
  expect_bad_config("quantization_config", "quantization_config", {{"bits", 4}});
  expect_bad_config("num_experts (here 8) is not known", "num_experts", 8);
  expect_bad_config("rope_scaling.rope_type is \"yarn\", which is not supported: only \"default\" and \"llama3\"",
                    "rope_scaling", {{"rope_type", "yarn"}, {"factor", 2.0}});
  expect_bad_config("rope_scaling.rope_type is \"linear\"", "rope_scaling", {{"type", "linear"}, {"factor", 2.0}});
  expect_bad_config("rope_scaling.factor is missing", "rope_scaling", {{"rope_type", "llama3"}});
  expect_bad_config("rope_parameters.beta_fast (here 32) is not known", "rope_parameters",
                    {{"rope_type", "default"}, {"beta_fast", 32}});
  expect_bad_config("rope_theta is 10000, but rope_parameters.rope_theta is 500", "rope_parameters",
                    {{"rope_theta", 500.0}});
  expect_bad_config("partial_rotary_factor is 0.5", "partial_rotary_factor", 0.5);
  expect_bad_config("rope_interleaved is true", "rope_interleaved", true);
  expect_bad_config("use_sliding_window is true", "use_sliding_window", true);
  expect_bad_config("layer_types has \"sliding_attention\"", "layer_types", {"full_attention", "sliding_attention"});
  expect_bad_config("hidden_size is missing", "hidden_size", nullptr);
  expect_bad_config("hidden_size is \"8\", must be an integer", "hidden_size", "8");
  expect_bad_config("hidden_size is 1e+30, must be an integer", "hidden_size", 1e30);
  expect_bad_config("num_attention_heads is 0, must be an integer from 1", "num_attention_heads", 0);
  expect_bad_config("num_hidden_layers is -1", "num_hidden_layers", -1);
  expect_bad_config("is not a multiple of model.kv_heads", "num_key_value_heads", 3);
  expect_bad_config("rms_norm_eps is -1.0, must be a number", "rms_norm_eps", -1.0);
  expect_bad_config("tie_word_embeddings is 1, must be true or false", "tie_word_embeddings", 1);
  expect_bad("hidden_size 10 is no multiple of num_attention_heads 4",
             [](HubModel& m) { m.config["hidden_size"] = 10; });
  expect_bad("sliding_window is 64, shorter than max_position_embeddings 128", [](HubModel& m) {
    m.config["architectures"][0] = "MistralForCausalLM";
    m.config["sliding_window"] = 64;
  });
  expect_bad("sliding_window is 4096, shorter than max_position_embeddings 8192", [](HubModel& m) {
    m.config["architectures"][0] = "MistralForCausalLM";
    m.config["max_position_embeddings"] = 8192;
  });
  expect_bad_folder("config.json: not JSON", [&] { write_file(hub_ / "config.json", "{"); });
  expect_bad_folder("config.json: the file is not an object", [&] { write_file(hub_ / "config.json", "[]"); });
  for (const int lists : {64, 1'000'000})  // in the file's object; 63 are few enough
    expect_bad_folder("config.json: values are nested more than 64 deep", [&] {
      write_file(hub_ / "config.json", "{\"architectures\":" + std::string(lists, '[') + std::string(lists, ']') + "}");
    });
  expect_bad_config("architectures is [[", "architectures",
                    nlohmann::json::parse(std::string(63, '[') + "1" + std::string(63, ']')));
}

TEST_F(ImportRefused, RopeThatIsGivenTwiceMustBeTheSame) {
  const auto expect_contradiction = [&](const std::string& message, const nlohmann::json& of_4,
                                        const nlohmann::json& of_5) {
    expect_bad(message, [&](HubModel& m) {
      m.config.erase("rope_theta");
      m.config["rope_scaling"] = of_4;
      m.config["rope_parameters"] = of_5;
    });
  };
  for (const char* key : {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}) {
    nlohmann::json other = hub_llama3_rope;
    other[key] = 2;
    expect_contradiction(
        fmt::format("rope_scaling.{} is {}, but rope_parameters.{} is 2", key, hub_llama3_rope[key].get<double>(), key),
        hub_llama3_rope, other);
  }
  expect_contradiction("rope_scaling and rope_parameters are of different types", hub_llama3_rope,
                       {{"rope_type", "default"}});
  expect_contradiction("rope_scaling.rope_theta is 300, but rope_parameters.rope_theta is 400",
                       {{"rope_theta", 300.0}, {"type", "default"}}, {{"rope_theta", 400.0}, {"type", "default"}});
  expect_bad_config("rope_theta is 10000, but rope_scaling.rope_theta is 300", "rope_scaling", {{"rope_theta", 300.0}});
}

TEST_F(ImportRefused, TensorsThatDoNotFitAreNamed) {
  const std::string q = "model.layers.1.self_attn.q_proj.weight";
  expect_bad("has no tensor " + q, [&](HubModel& m) { m.tensors.erase(q); });
  expect_bad("has no tensor model.norm.weight; the nearest name is model.norm.gamma", [&](HubModel& m) {
    m.tensors["model.norm.gamma"] = m.tensors.at("model.norm.weight");
    m.tensors.erase("model.norm.weight");
  });
  expect_bad(
      "none of the 3 safetensors files there has tensor " + q, [&](HubModel& m) { m.tensors.erase(q); }, 3);
  expect_bad("tensor model.layers.2.mlp.up_proj.weight is none of the 20", [&](HubModel& m) {
    m.tensors["model.layers.2.mlp.up_proj.weight"] = m.tensors.at("model.layers.1.mlp.up_proj.weight");
  });
  expect_bad("self_attn.q_proj.bias is none of the 20", [&](HubModel& m) {
    m.tensors["model.layers.0.self_attn.q_proj.bias"] = m.tensors.at("model.norm.weight");
  });
  expect_bad("is f32 [4, 16], but must be [8, 8]", [&](HubModel& m) { m.tensors.at(q).first = {4, 16}; });
  expect_bad("is f32 [64], but must be [8, 8]", [&](HubModel& m) { m.tensors.at(q).first = {64}; });
  expect_bad("tensor model.norm.weight is f32 [8, 1], but must be [8]", [&](HubModel& m) {
    m.tensors.at("model.norm.weight").first = {8, 1};
  });
  expect_bad("lm_head.weight differs from model.embed_tokens.weight, but", [&](HubModel& m) {
    m.tensors["lm_head.weight"] = m.tensors.at("model.embed_tokens.weight");
    m.tensors.at("lm_head.weight").second[5] ^= 1;
  });
  for (const float bad : {NAN, INFINITY})
    expect_bad(fmt::format("tensor {} has {} at row 3, column 2: the weights are damaged", q, bad),
               [&](HubModel& m) { m.put(m.tensors.at(q).second, 3 * 8 + 2, bad); });
  expect_bad("model.embed_tokens.weight has nan at row 299, column 7",
             [&](HubModel& m) { m.put(m.tensors.at("model.embed_tokens.weight").second, 299 * 8 + 7, NAN); });
}

TEST_F(ImportRefused, AnotherModelsTokenizerIsRefused) {
  const int64_t tokens = test::hub_tokens();
  for (const int64_t rows : {tokens - 1, tokens + 1025})
    expect_bad(fmt::format("the tokenizer has {} tokens, the embedding {} rows", tokens, rows), [&](HubModel& m) {
      m.tensors.clear();
      m.config["vocab_size"] = rows;
      m.fill();
    });
}

// What the format itself forbids: tests/runtime/test_safetensors.cpp has every case.
TEST_F(ImportRefused, DamagedFilesAreRefused) {
  const auto change_file = [&](const char* name, const std::function<void(std::string&)>& change) {
    return [this, name, change] {
      std::string content = read_file(hub_ / name);
      change(content);
      write_file(hub_ / name, content);
    };
  };
  expect_bad_folder("the file is cut short",
                    change_file("model.safetensors", [](std::string& s) { s.resize(s.size() - 4); }));
  expect_bad_folder("claims a header of", change_file("model.safetensors", [](std::string& s) { s[6] = 1; }));
  // Each tensor after the first begins four bytes inside of the one before.
  expect_bad_folder("inside the tensor before it", change_file("model.safetensors", [](std::string& s) {
                      uint64_t length = 0;
                      std::memcpy(&length, s.data(), 8);
                      auto header = nlohmann::json::parse(s.substr(8, length));
                      for (auto& [name, entry] : header.items())
                        if (entry.contains("data_offsets") && entry["data_offsets"][0] != 0)
                          for (auto& offset : entry["data_offsets"]) offset = offset.get<uint64_t>() - 4;
                      std::string text = header.dump();
                      text.resize(length, ' ');
                      s.replace(8, length, text);
                    }));
  expect_bad_folder(
      "part-1.safetensors", [&] { fs::remove(hub_ / "part-1.safetensors"); }, 3, ErrorKind::io);
  expect_bad_folder("is in part-0.safetensors, not in part-1.safetensors",
                    change_file("model.safetensors.index.json",
                                [](std::string& s) {
                                  auto index = nlohmann::json::parse(s);
                                  for (auto& [name, file] : index["weight_map"].items())
                                    if (file == "part-0.safetensors") {
                                      file = "part-1.safetensors";
                                      break;
                                    }
                                  s = index.dump();
                                }),
                    3);
  expect_bad_folder(
      "not an index of safetensors files",
      change_file("model.safetensors.index.json", [](std::string& s) { s = R"({"weight_map": {"a": 3}})"; }), 3);
  expect_bad_folder("has neither model.safetensors nor",
                    [&] { fs::rename(hub_ / "model.safetensors", hub_ / "pytorch_model.bin"); });
  expect_bad_folder(
      "not a SentencePiece model", [&] { write_file(hub_ / "tokenizer.model", "x"); }, 1, ErrorKind::data);
  expect_bad_folder(
      "tokenizer.model", [&] { fs::remove(hub_ / "tokenizer.model"); }, 1, ErrorKind::io);
  expect_bad_folder(
      "config.json", [&] { fs::remove(hub_ / "config.json"); }, 1, ErrorKind::io);
}

TEST_F(ImportRefused, NothingIsReadFromOutsideOfTheFolder) {
  for (const char* name : {"../outside.safetensors", "/etc/passwd", "sub/part.safetensors", "..", "."})
    expect_bad_folder(
        fmt::format("a file named '{}' would lie outside of the folder", name),
        [&] {
          auto index = nlohmann::json::parse(read_file(hub_ / "model.safetensors.index.json"));
          index["weight_map"]["model.norm.weight"] = name;
          write_file(hub_ / "model.safetensors.index.json", index.dump());
        },
        3);
  expect_bad_folder(
      "has both model.safetensors and model.safetensors.index.json",
      [&] { fs::copy_file(hub_ / "part-0.safetensors", hub_ / "model.safetensors"); }, 3);
  for (const char* name : {"model.safetensors", "config.json", "tokenizer.model"})
    expect_bad_folder("is a link out of the folder", [&] {
      fs::rename(hub_ / name, folder_ / "outside");
      fs::create_symlink("../outside", hub_ / name);
    });
  expect_bad_folder(
      "is a link out of the folder",
      [&] {
        fs::rename(hub_ / "model.safetensors.index.json", folder_ / "outside");
        fs::create_symlink("../outside", hub_ / "model.safetensors.index.json");
      },
      3);
  // A link that stays inside is fine.
  HubModel model;
  model.fill();
  fs::remove_all(hub_);
  model.write(hub_);
  fs::rename(hub_ / "model.safetensors", hub_ / "blob");
  fs::create_symlink("blob", hub_ / "model.safetensors");
  import();
}

}  // namespace
}  // namespace notellm
