// Models of the hub in and out: bit for bit, with everything that belongs to them.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/expect_error.h"
#include "tests/support/import_test.h"
#include "tests/support/tiny_model.h"
#include "training/checkpoint.h"
#include "training/export.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;
using test::HubModel;

class Import : public test::ImportTest {
 protected:
  fs::path exported_ = folder_ / "exported";
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

// Rows that belong to no token go, [EMB] takes the place of the first of them.
TEST_F(Import, LeavesOutPaddingRows) {
  HubModel model;
  model.config["vocab_size"] = test::hub_tokens() + 20;
  model.fill();
  model.write(hub_);
  import();
  EXPECT_EQ(verify_checkpoint(checkpoint_).manifest.tokens_in_use, test::hub_tokens() + 1);
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

TEST_F(Import, ConfigOfTransformers4And5) {
  const auto config_of = [&](const nlohmann::json& changes) {
    HubModel model;
    model.config.update(changes);
    model.write(hub_);
    return read_hugging_face_config(hub_).config;
  };
  nlohmann::json llama3_of_5 = test::hub_llama3_rope;
  llama3_of_5["rope_theta"] = 500000.0;
  for (const auto& changes :
       {nlohmann::json{{"rope_theta", 500000.0}, {"rope_scaling", test::hub_llama3_rope}},
        nlohmann::json{{"rope_theta", nullptr}, {"rope_parameters", llama3_of_5}},
        nlohmann::json{
            {"rope_theta", 500000.0}, {"rope_scaling", test::hub_llama3_rope}, {"rope_parameters", llama3_of_5}}}) {
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
