// Models of the hub in and out: bit for bit, and every kind of folder that must be refused, without a trace.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <cmath>

#include "runtime/files.h"
#include "tests/support/expect_error.h"
#include "tests/support/hub_model.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"
#include "training/checkpoint.h"
#include "training/export.h"
#include "training/import.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;
using test::HubModel;

class Import : public testing::Test {
 protected:
  Import() { spdlog::set_level(spdlog::level::off); }
  void import(const std::vector<std::string>& overrides = {"model.note_dim=5"}) {
    import_model(hub_, checkpoint_, "", overrides);
  }
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

  test::TempDir folder_;
  fs::path hub_ = folder_ / "hub", checkpoint_ = folder_ / "checkpoint", exported_ = folder_ / "exported";
};

std::string bytes_of(const Tensor& t) { return {static_cast<const char*>(t.data), static_cast<size_t>(t.bytes())}; }

std::vector<NamedTensor> all_tensors(std::deque<SafetensorsFile>& files, const fs::path& folder) {
  std::vector<NamedTensor> all;
  for (const fs::path& path : model_files(folder))
    for (const NamedTensor& t : files.emplace_back(path).tensors()) all.push_back(t);
  return all;
}

// The rows of the tokens as they were; the last one their mean.
void expect_same_tensors(const HubModel& model, const fs::path& exported) {
  std::deque<SafetensorsFile> files;
  const auto found = all_tensors(files, exported);
  EXPECT_EQ(found.size(), model.tensors.size());
  for (const NamedTensor& t : found) {
    ASSERT_TRUE(model.tensors.contains(t.name)) << t.name;
    const Tensor before = model.tensor(t.name).tensor;
    ASSERT_EQ(t.tensor.dtype, before.dtype) << t.name;
    const bool table = t.name == "model.embed_tokens.weight" || t.name == "lm_head.weight";
    ASSERT_EQ(t.tensor.rows(), before.rows() + table) << t.name;
    EXPECT_TRUE(bytes_of(t.tensor.slice(0, before.rows())) == bytes_of(before)) << t.name;
  }
}

TEST_F(Import, ExportsTheBitsThatItRead) {
  int i = 0;
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
    for (const char* architecture : {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"}) {
      const bool tied = i % 2 == 0;
      const int files = i++ % 4 < 2 ? 1 : 3;
      SCOPED_TRACE(fmt::format("{} {} {}, {} files", name_of(dtype), architecture, tied ? "tied" : "untied", files));
      HubModel model;
      model.dtype = dtype;
      model.config["tie_word_embeddings"] = tied;
      model.config["architectures"][0] = architecture;
      model.fill();
      for (const fs::path& path : {hub_, checkpoint_, exported_}) fs::remove_all(path);
      model.write(hub_, files);
      import();
      export_model(checkpoint_, exported_, {.file_bytes = files == 1 ? 1'000'000 : 4000});
      EXPECT_EQ(fs::exists(exported_ / "model.safetensors"), files == 1);
      expect_same_tensors(model, exported_);
      const HuggingFaceModel before = read_hugging_face_config(hub_), after = read_hugging_face_config(exported_);
      EXPECT_EQ(after.vocabulary, test::hub_tokens() + 1);
      EXPECT_EQ(after.config.qkv_bias, before.config.qkv_bias);
      EXPECT_EQ(after.config.tied_head, before.config.tied_head);
      EXPECT_EQ(read_file(exported_ / "tokenizer.model"), test::hub_tokenizer());
    }
}

TEST_F(Import, AnExportKeepsItsRowOfEmb) {
  HubModel model;
  model.fill();
  model.write(hub_);
  import();
  export_model(checkpoint_, exported_, {});
  // As training changes it.
  const fs::path weights = exported_ / "model.safetensors";
  std::string bytes = read_file(weights);
  {
    const SafetensorsFile file(weights);
    for (const NamedTensor& t : file.tensors())
      if (t.name == "model.embed_tokens.weight") {
        const std::string before = bytes_of(t.tensor), other = bytes_of(t.tensor.slice(0, 1));
        bytes.replace(bytes.find(before) + before.size() - other.size(), other.size(), other);
      }
  }
  write_file(weights, bytes);
  import_model(exported_, folder_ / "again", "", {"model.note_dim=4"});
  export_model(folder_ / "again", folder_ / "exported_again", {});
  EXPECT_TRUE(read_file(folder_ / "exported_again" / "model.safetensors") == bytes);
}

TEST_F(Import, WritesACheckpointOfStepZeroWithoutMoments) {
  HubModel model;
  model.config["tie_word_embeddings"] = false;
  model.fill();
  model.write(hub_);
  import({"model.note_dim=5", "seed=3", "model.init.tau=2"});
  const CheckpointInfo info = verify_checkpoint(checkpoint_);
  EXPECT_EQ(info.manifest.position.step, 0);
  EXPECT_EQ(info.manifest.tokens_in_use, test::hub_tokens() + 1);
  EXPECT_FALSE(has_moments(info.manifest));
  const ModelConfig& c = info.config.model;
  const ParameterLayout layout(c, info.manifest.vocabulary);
  test::FlatWeights loaded(layout), fresh(layout);
  load_weights(checkpoint_, layout, true, loaded.flat);
  test::initialize_flat(layout, c.init, 3, test::hub_tokens() + 1, test::hub_tokens(), fresh.flat);
  EXPECT_EQ(bytes_of(loaded.weights.note_projection), bytes_of(fresh.weights.note_projection));
  EXPECT_EQ(*loaded.weights.tau.as<float>(), 2);
  for (const auto& [name, table] : {std::pair{"model.embed_tokens.weight", loaded.weights.embedding},
                                    std::pair{"lm_head.weight", loaded.weights.head}}) {
    const float* rows = model.tensor(name).tensor.as<float>();
    for (int64_t col = 0; col < c.dim; ++col) {
      double sum = 0;
      for (int64_t r = 0; r < test::hub_tokens(); ++r) sum += rows[r * c.dim + col];
      EXPECT_EQ(table.as<float>()[test::hub_tokens() * c.dim + col],
                static_cast<float>(sum / static_cast<double>(test::hub_tokens())));
      for (int64_t r = test::hub_tokens() + 1; r < layout.vocabulary(); ++r)
        EXPECT_EQ(table.as<float>()[r * c.dim + col], 0);
    }
  }
}

// Rows that belong to no token go, [EMB] takes the place of the first of them; more than models have are an error.
TEST_F(Import, LeavesOutPaddingRows) {
  HubModel model;
  model.config["vocab_size"] = test::hub_tokens() + 20;
  model.fill();
  model.write(hub_);
  import();
  EXPECT_EQ(verify_checkpoint(checkpoint_).manifest.tokens_in_use, test::hub_tokens() + 1);
  fs::remove_all(checkpoint_);
  for (const int64_t rows : {test::hub_tokens() - 1, test::hub_tokens() + 1025})
    expect_bad(fmt::format("the tokenizer has {} tokens, the embedding {} rows", test::hub_tokens(), rows),
               [&](HubModel& m) {
                 m.tensors.clear();
                 m.config["vocab_size"] = rows;
                 m.fill();
               });
}

TEST_F(Import, KeysThatDisagreeAreRefused) {
  HubModel model;
  model.fill();
  model.write(hub_);
  EXPECT_ERROR(usage, "model.layers is 3, but " + hub_.string() + " has 2", import({"model.layers=3"}));
  EXPECT_ERROR(usage, "model.qkv_bias is true, but", import({"model.qkv_bias=true"}));
  import({"model.layers=2", "model.head_dim=0", "model.export_type=bf16"});
  EXPECT_EQ(verify_checkpoint(checkpoint_).config.model.export_type, ExportType::bf16);
}

TEST_F(Import, AFolderThatIsThereStays) {
  HubModel model;
  model.fill();
  model.write(hub_);
  import();
  EXPECT_ERROR(io, "is there already", import());
  EXPECT_ERROR(io, "is there already", export_model(checkpoint_, hub_, {}));
  verify_checkpoint(checkpoint_);
}

// The name under which they write may be anyone's, even of what they read.
TEST_F(Import, APartialFolderThatIsThereStays) {
  HubModel model;
  model.fill();
  hub_ = checkpoint_.string() + ".partial";
  model.write(hub_);
  const std::string refused = " is there already, left by a run that was cut off or not of this program: remove it";
  EXPECT_ERROR(io, hub_.string() + refused, import());
  EXPECT_EQ(read_file(hub_ / "config.json"), model.config.dump(1));
  EXPECT_FALSE(fs::exists(checkpoint_));
  const fs::path trained = exported_.string() + ".partial";
  import_model(hub_, trained, "", {"model.note_dim=5"});
  EXPECT_ERROR(io, trained.string() + refused, export_model(trained, exported_, {}));
  verify_checkpoint(trained);
  EXPECT_FALSE(fs::exists(exported_));
  // A link too, even to nothing.
  fs::create_symlink("nothing", folder_ / "other.partial");
  EXPECT_ERROR(io, "other.partial" + refused, export_model(trained, folder_ / "other", {}));
  EXPECT_TRUE(fs::is_symlink(folder_ / "other.partial"));
}

const nlohmann::json llama3 = {{"rope_type", "llama3"},
                               {"factor", 8.0},
                               {"low_freq_factor", 1.0},
                               {"high_freq_factor", 4.0},
                               {"original_max_position_embeddings", 64}};

TEST_F(Import, ConfigOfTransformers4And5) {
  const auto config_of = [&](const nlohmann::json& changes) {
    HubModel model;
    model.config.update(changes);
    model.write(hub_);
    return read_hugging_face_config(hub_).config;
  };
  nlohmann::json llama3_of_5 = llama3;
  llama3_of_5["rope_theta"] = 500000.0;
  for (const auto& changes :
       {nlohmann::json{{"rope_theta", 500000.0}, {"rope_scaling", llama3}},
        nlohmann::json{{"rope_theta", nullptr}, {"rope_parameters", llama3_of_5}},
        nlohmann::json{{"rope_theta", 500000.0}, {"rope_scaling", llama3}, {"rope_parameters", llama3_of_5}}}) {
    const ModelConfig c = config_of(changes);
    EXPECT_EQ(c.rope_theta, 500000);
    EXPECT_EQ(static_cast<int>(c.rope_scaling.type), static_cast<int>(RopeScaling::llama3));
    EXPECT_EQ(c.rope_scaling.factor, 8);
    EXPECT_EQ(c.rope_scaling.original_context, 64);
  }
  EXPECT_EQ(config_of(nlohmann::json::object()).head_dim, 2);
  EXPECT_EQ(config_of({{"head_dim", 6}}).head_dim, 6);
  EXPECT_EQ(config_of({{"num_key_value_heads", nullptr}}).kv_heads, 4);
  EXPECT_EQ(config_of({{"rope_theta", nullptr}}).rope_theta, 10000);
  EXPECT_EQ(config_of({{"architectures", {"MistralForCausalLM"}}, {"sliding_window", 128}}).context, 128);
  EXPECT_EQ(config_of({{"architectures", {"MistralForCausalLM"}}}).context, 128);
  EXPECT_EQ(
      config_of(
          {{"architectures", {"MistralForCausalLM"}}, {"sliding_window", nullptr}, {"max_position_embeddings", 8192}})
          .context,
      8192);
  // As SmolLM2 and mirrors of LLaMA have them.
  EXPECT_EQ(config_of({{"is_llama_config", true},
                       {"rope_interleaved", false},
                       {"transformers.js_config", {{"kv_cache_dtype", {{"fp16", "float16"}}}}},
                       {"unsloth_fixed", true},
                       {"max_sequence_length", 128}})
                .context,
            128);
  EXPECT_TRUE(config_of({{"architectures", {"Qwen2ForCausalLM"}}, {"sliding_window", 8}, {"use_sliding_window", false}})
                  .qkv_bias);
}

TEST_F(Import, UnsupportedOptionsAreNamed) {
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

TEST_F(Import, RopeThatIsGivenTwiceMustBeTheSame) {
  const auto expect_contradiction = [&](const std::string& message, const nlohmann::json& of_4,
                                        const nlohmann::json& of_5) {
    expect_bad(message, [&](HubModel& m) {
      m.config.erase("rope_theta");
      m.config["rope_scaling"] = of_4;
      m.config["rope_parameters"] = of_5;
    });
  };
  for (const char* key : {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}) {
    nlohmann::json other = llama3;
    other[key] = 2;
    expect_contradiction(
        fmt::format("rope_scaling.{} is {}, but rope_parameters.{} is 2", key, llama3[key].get<double>(), key), llama3,
        other);
  }
  expect_contradiction("rope_scaling and rope_parameters are of different types", llama3, {{"rope_type", "default"}});
  expect_contradiction("rope_scaling.rope_theta is 300, but rope_parameters.rope_theta is 400",
                       {{"rope_theta", 300.0}, {"type", "default"}}, {{"rope_theta", 400.0}, {"type", "default"}});
  expect_bad_config("rope_theta is 10000, but rope_scaling.rope_theta is 300", "rope_scaling", {{"rope_theta", 300.0}});
}

TEST_F(Import, TensorsThatDoNotFitAreNamed) {
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

TEST_F(Import, AnotherModelsTokenizerIsRefused) {
  const int64_t tokens = test::hub_tokens();
  for (const int64_t rows : {tokens - 1, tokens + 1025}) {
    SCOPED_TRACE(rows);
    HubModel model;
    model.config["vocab_size"] = rows;
    model.fill();
    fs::remove_all(hub_);
    model.write(hub_);
    expect_refused(ErrorKind::checkpoint,
                   fmt::format("the tokenizer has {} tokens, the embedding {} rows", tokens, rows));
  }
}

// What the format itself forbids: tests/runtime/test_safetensors.cpp has every case.
TEST_F(Import, DamagedFilesAreRefused) {
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

TEST_F(Import, NothingIsReadFromOutsideOfTheFolder) {
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

// A file between two types: those of a writer that does not align them.
TEST_F(Import, ReadsTensorsThatAreNotAligned) {
  HubModel model;
  model.fill();
  model.write(hub_);
  std::string content = read_file(hub_ / "model.safetensors");
  uint64_t length = 0;
  std::memcpy(&length, content.data(), 8);
  content.insert(8 + length, 1, ' ');
  ++length;
  std::memcpy(content.data(), &length, 8);
  write_file(hub_ / "model.safetensors", content);
  import();
  export_model(checkpoint_, exported_, {});
  expect_same_tensors(model, exported_);
}

TEST_F(Import, ExportInAnotherType) {
  HubModel model;
  model.fill();
  model.write(hub_);
  import();
  export_model(checkpoint_, exported_, {.type = ExportType::bf16, .file_bytes = 1'000'000});
  const SafetensorsFile file(exported_ / "model.safetensors");
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  const float* before = model.tensor(name).tensor.as<float>();
  const auto after = file.at(name).span<bf16>();
  for (size_t i = 0; i < after.size(); ++i) EXPECT_EQ(after[i].bits, bf16(before[i]).bits);
  EXPECT_EQ(nlohmann::json::parse(read_file(exported_ / "config.json")).at("dtype"), "bfloat16");
}

TEST_F(Import, BadCheckpointsAreNotExported) {
  HubModel model;
  model.fill();
  model.put(model.tensors.at("model.norm.weight").second, 2, 70000);
  model.write(hub_);
  import();
  const auto expect = [&](ErrorKind kind, const std::string& message, const ExportOptions& options) {
    try {
      export_model(checkpoint_, exported_, options);
      ADD_FAILURE() << message;
    } catch (const Error& error) {
      EXPECT_EQ(static_cast<int>(error.kind()), static_cast<int>(kind)) << error.what();
      EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
    }
    EXPECT_FALSE(fs::exists(exported_));
    EXPECT_FALSE(fs::exists(exported_.string() + ".partial"));
  };
  expect(ErrorKind::checkpoint, "model.norm.weight has 70000, which is beyond f16", {.type = ExportType::f16});
  // Before the weights, which take their time.
  expect(ErrorKind::io, "report.json", {.type = ExportType::f16, .report = folder_ / "report.json"});
  for (const char* report : {"{}", "[", R"({"slices": {"all": {"methods": {}}}})",
                             R"({"pool": 1, "slices": {"all": {"pairs": "7", "methods": {}}}})"}) {
    write_file(folder_ / "report.json", report);
    expect(ErrorKind::data, "is not a report of 'notellm evaluate --json'", {.report = folder_ / "report.json"});
  }
  // A manifest that names a file outside is not followed.
  Manifest manifest = read_manifest(checkpoint_);
  manifest.files.push_back({"../hub/config.json", 1, checksum("")});
  write_manifest(checkpoint_, manifest);
  expect(ErrorKind::checkpoint, "a file named '../hub/config.json' would lie outside of the folder", {});
}

TEST_F(Import, TheCardHasWhatWasMeasured) {
  HubModel model;
  model.fill();
  model.write(hub_);
  import();
  export_model(checkpoint_, exported_, {});
  EXPECT_NE(read_file(exported_ / "README.md").find("Nothing: no report was given"), std::string::npos);
  write_file(folder_ / "report.json",
             R"({"pool": 60, "slices": {"all": {"pairs": 7, "methods": {"popularity": null,
                "notellm": {"recall_10": 0.25, "recall_100": 0.5, "recall_1000": 1, "recall_10000": 1, "mrr": 0.125}}}}})");
  fs::remove_all(exported_);
  export_model(checkpoint_, exported_, {.report = folder_ / "report.json"});
  const std::string card = read_file(exported_ / "README.md");
  for (const char* part : {"Of 7 test pairs, over a pool of 60 notes", "| notellm | 25.00 % | 50.00 % | 100.00 %",
                           "| popularity | – |", "note_dim: 5", "Extract the note information"})
    EXPECT_NE(card.find(part), std::string::npos) << part << " in\n" << card;
}

}  // namespace
}  // namespace notellm
