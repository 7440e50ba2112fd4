#include "training/hugging_face.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "data_pipeline/json_node.h"
#include "runtime/files.h"

namespace notellm {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* llama = "LlamaForCausalLM";
constexpr const char* mistral = "MistralForCausalLM";
constexpr const char* qwen2 = "Qwen2ForCausalLM";
constexpr const char* supported = "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM";
constexpr int mistral_window = 4096;  // transformers' sliding_window where the key is missing; null is none

// Keys without meaning for what the model computes, or only for its training by others.
constexpr const char* ignored_keys[] = {"_name_or_path",
                                        "_attn_implementation_autoset",
                                        "attention_dropout",
                                        "bos_token_id",
                                        "dtype",
                                        "eos_token_id",
                                        "id2label",
                                        "initializer_range",
                                        "is_llama_config",
                                        "label2id",
                                        "max_sequence_length",
                                        "max_window_layers",
                                        "neftune_noise_alpha",
                                        "output_attentions",
                                        "output_hidden_states",
                                        "pad_token_id",
                                        "pretraining_tp",
                                        "return_dict",
                                        "torch_dtype",
                                        "transformers.js_config",
                                        "transformers_version",
                                        "unk_token_id",
                                        "unsloth_fixed",
                                        "unsloth_version",
                                        "use_cache"};

const char* type_name(ExportType type) {
  return type == ExportType::f32 ? "float32" : type == ExportType::bf16 ? "bfloat16" : "float16";
}

Json rope_parameters(const ModelConfig& c) {
  Json json = {{"rope_theta", c.rope_theta}, {"rope_type", "default"}};
  if (const RopeScalingConfig& s = c.rope_scaling; s.type == RopeScaling::llama3) {
    json["rope_type"] = "llama3";
    json["factor"] = s.factor;
    json["low_freq_factor"] = s.low_frequency_factor;
    json["high_freq_factor"] = s.high_frequency_factor;
    json["original_max_position_embeddings"] = s.original_context;
  }
  return json;
}

// One JSON object of the file, whose keys are asked for one after the other; those that nobody asks for are errors.
class Section {
 public:
  Section(std::string file, std::string name, const Json& json)
      : file_(std::move(file)), name_(std::move(name)), json_(json) {
    if (!json.is_object()) bad("{} is not an object", name_.empty() ? "the file" : name_);
  }

  template <class... Args>
  [[noreturn]] void bad(fmt::format_string<Args...> format, Args&&... args) const {
    fail(ErrorKind::checkpoint, "{}: {}", file_, fmt::format(format, std::forward<Args>(args)...));
  }
  std::string path(const std::string& key) const { return name_.empty() ? key : name_ + "." + key; }

  // The value, or null where it is missing or null.
  const Json& get(const std::string& key) {
    static const Json null;
    asked_.insert(key);
    return json_.contains(key) ? json_.at(key) : null;
  }
  bool has(const std::string& key) { return !get(key).is_null(); }
  bool is_null(const std::string& key) const { return json_.contains(key) && json_.at(key).is_null(); }

  int integer(const std::string& key, int low, int high) {
    const Json& value = needed(key);
    if (!value.is_number_integer() || value < low || value > high)
      bad("{} is {}, must be an integer from {} to {}", path(key), value.dump(), low, high);
    return value.get<int>();
  }
  double number(const std::string& key, double low) {
    const Json& value = needed(key);
    if (!value.is_number() || !(value.get<double>() >= low) || !std::isfinite(value.get<double>()))
      bad("{} is {}, must be a number of at least {}", path(key), value.dump(), low);
    return value.get<double>();
  }
  bool truth(const std::string& key, bool missing) {
    const Json& value = get(key);
    if (value.is_null()) return missing;
    if (!value.is_boolean()) bad("{} is {}, must be true or false", path(key), value.dump());
    return value.get<bool>();
  }
  // A key of which one value alone is supported; missing is that one.
  void only(const std::string& key, const Json& value) {
    if (has(key) && get(key) != value)
      bad("{} is {}, which is not supported: only {} is", path(key), get(key).dump(), value.dump());
  }
  void ignore(const std::string& key) { asked_.insert(key); }
  void expect_no_other_keys() const {
    for (const auto& [key, value] : json_.items())
      if (!asked_.contains(key) && !value.is_null())
        bad("{} (here {}) is not known: it may change what the model computes, which is not supported; where it does "
            "not, take it out of the file",
            path(key), value.dump());
  }

 private:
  const Json& needed(const std::string& key) {
    if (!has(key)) bad("{} is missing", path(key));
    return get(key);
  }
  std::string file_, name_;
  const Json& json_;
  std::set<std::string> asked_;
};

std::string read_architecture(Section& top) {
  const Json& list = top.get("architectures");
  top.ignore("model_type");
  if (!list.is_array() || list.size() != 1 || !list[0].is_string())
    top.bad("architectures is {}, must name one of {}", list.dump(), supported);
  const auto name = list[0].get<std::string>();
  if (name != llama && name != mistral && name != qwen2)
    top.bad("the architecture {} is not supported; supported are {}", name, supported);
  return name;
}

void read_llama3(Section& rope, RopeScalingConfig& to) {
  to.type = RopeScaling::llama3;
  to.factor = rope.number("factor", 1);
  to.low_frequency_factor = rope.number("low_freq_factor", 0);
  to.high_frequency_factor = rope.number("high_freq_factor", 0);
  to.original_context = rope.integer("original_max_position_embeddings", 1, 1 << 30);
  if (to.low_frequency_factor >= to.high_frequency_factor)
    rope.bad("{} must be less than {}", rope.path("low_freq_factor"), rope.path("high_freq_factor"));
}

// rope_scaling of transformers 4, or rope_parameters of 5.
struct Rope {
  std::optional<double> theta;
  RopeScalingConfig scaling;
};

std::optional<Rope> read_rope_section(Section& top, const char* name, const std::string& file) {
  if (!top.has(name)) return {};
  Section rope(file, name, top.get(name));
  Rope read;
  if (rope.has("rope_theta")) read.theta = rope.number("rope_theta", 1);
  rope.only("partial_rotary_factor", 1.0);
  const Json& type = rope.has("rope_type") ? rope.get("rope_type") : rope.get("type");
  rope.ignore("type");
  if (type == "llama3")
    read_llama3(rope, read.scaling);
  else if (!type.is_null() && type != "default")
    rope.bad("{} is {}, which is not supported: only \"default\" and \"llama3\" are", rope.path("rope_type"),
             type.dump());
  rope.expect_no_other_keys();
  return read;
}

// What is given under two keys must be the same.
void expect_same(const Section& top, const std::string& key, std::optional<double> value, const std::string& other_key,
                 std::optional<double> other) {
  if (value && other && *value != *other) top.bad("{} is {}, but {} is {}", key, *value, other_key, *other);
}

void expect_same_scaling(const Section& top, const RopeScalingConfig& of_4, const RopeScalingConfig& of_5) {
  if (of_4.type != of_5.type) top.bad("rope_scaling and rope_parameters are of different types");
  const auto same = [&](const std::string& name, double a, double b) {
    expect_same(top, "rope_scaling." + name, a, "rope_parameters." + name, b);
  };
  same("factor", of_4.factor, of_5.factor);
  same("low_freq_factor", of_4.low_frequency_factor, of_5.low_frequency_factor);
  same("high_freq_factor", of_4.high_frequency_factor, of_5.high_frequency_factor);
  same("original_max_position_embeddings", of_4.original_context, of_5.original_context);
}

void read_rope(Section& top, const std::string& file, ModelConfig& c) {
  std::optional<double> theta;
  if (top.has("rope_theta")) theta = top.number("rope_theta", 1);
  const auto of_4 = read_rope_section(top, "rope_scaling", file),
             of_5 = read_rope_section(top, "rope_parameters", file);
  const auto theta_of_4 = of_4 ? of_4->theta : std::nullopt, theta_of_5 = of_5 ? of_5->theta : std::nullopt;
  expect_same(top, "rope_theta", theta, "rope_scaling.rope_theta", theta_of_4);
  expect_same(top, "rope_theta", theta, "rope_parameters.rope_theta", theta_of_5);
  expect_same(top, "rope_scaling.rope_theta", theta_of_4, "rope_parameters.rope_theta", theta_of_5);
  if (of_4 && of_5) expect_same_scaling(top, of_4->scaling, of_5->scaling);
  c.rope_theta = theta_of_5.value_or(theta_of_4.value_or(theta.value_or(10000)));
  if (of_4 || of_5) c.rope_scaling = of_5 ? of_5->scaling : of_4->scaling;
}

// What not every architecture has.
void read_options(Section& top, const std::string& architecture, ModelConfig& c) {
  top.only("hidden_act", "silu");
  top.only("attention_bias", false);
  top.only("mlp_bias", false);
  top.only("partial_rotary_factor", 1.0);
  top.only("rope_interleaved", false);
  top.only("use_mrope", false);
  c.qkv_bias = architecture == qwen2;
  if (architecture == mistral && !top.is_null("sliding_window")) {
    const int window = top.has("sliding_window") ? top.integer("sliding_window", 1, 1 << 30) : mistral_window;
    if (window < c.context)
      top.bad(
          "sliding_window is {}, shorter than max_position_embeddings {}: windows are not supported; to use the model "
          "for at most {} tokens, where they are the same, set max_position_embeddings to that",
          window, c.context, window);
  }
  top.only("use_sliding_window", false);
  top.ignore("sliding_window");  // of Qwen2 without use_sliding_window; LLaMA has none
  if (const Json& types = top.get("layer_types"); !types.is_null())
    for (const Json& type : types)
      if (type != "full_attention" && !(architecture == mistral && type == "sliding_attention"))
        top.bad("layer_types has {}, which is not supported: only \"full_attention\" is", type.dump());
}

void check_sizes(const Section& top, ModelConfig& c) {
  if (c.head_dim == 0 && c.dim % c.heads != 0)
    top.bad("hidden_size {} is no multiple of num_attention_heads {}, and there is no head_dim", c.dim, c.heads);
  try {
    c.finish();
  } catch (const Error& error) {
    top.bad("{}", error.what());
  }
}

Json parse(const std::string& text, const std::string& file) {
  const auto check_depth = [&](int depth, Json::parse_event_t event, const Json&) {
    const bool opens = event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
    if (opens && depth >= JsonNode::most_depth)
      fail(ErrorKind::checkpoint, "{}: values are nested more than {} deep", file, JsonNode::most_depth);
    return true;
  };
  Json json = Json::parse(text, check_depth, false);
  if (json.is_discarded()) fail(ErrorKind::checkpoint, "{}: not JSON", file);
  return json;
}

}  // namespace

std::string hugging_face_config(const ModelConfig& c, int64_t vocabulary, std::optional<int32_t> bos, int32_t eos,
                                ExportType type) {
  Json json = {{"architectures", {c.qkv_bias ? qwen2 : llama}},
               {"model_type", c.qkv_bias ? "qwen2" : "llama"},
               {"hidden_size", c.dim},
               {"num_hidden_layers", c.layers},
               {"num_attention_heads", c.heads},
               {"num_key_value_heads", c.kv_heads},
               {"head_dim", c.head_dim},
               {"intermediate_size", c.ffn},
               {"vocab_size", vocabulary},
               {"max_position_embeddings", c.context},
               {"rms_norm_eps", c.norm_eps},
               {"rope_theta", c.rope_theta},
               {"rope_parameters", rope_parameters(c)},
               {"hidden_act", "silu"},
               {"tie_word_embeddings", c.tied_head},
               {"bos_token_id", bos ? Json(*bos) : Json()},
               {"eos_token_id", eos},
               {"dtype", type_name(type)}};
  if (c.rope_scaling.type != RopeScaling::none) {  // transformers 4 reads it there
    json["rope_scaling"] = rope_parameters(c);
    json["rope_scaling"].erase("rope_theta");
  }
  if (c.qkv_bias) {
    json["use_sliding_window"] = false;
  } else {
    json["attention_bias"] = false;
    json["mlp_bias"] = false;
  }
  return json.dump(2) + "\n";
}

HuggingFaceModel read_hugging_face_config(const std::filesystem::path& folder) {
  const std::filesystem::path path = file_inside(folder, hugging_face_config_name);
  const std::string file = path.string();
  const Json json = parse(read_file(path), file);
  Section top(file, "", json);
  const std::string architecture = read_architecture(top);
  constexpr int most = 1 << 20;
  HuggingFaceModel model;
  ModelConfig& c = model.config;
  c.dim = top.integer("hidden_size", 2, 1 << 16);
  c.layers = top.integer("num_hidden_layers", 1, 1024);
  c.heads = top.integer("num_attention_heads", 1, 1024);
  // Where it is missing, only LLaMA's default is plain.
  c.kv_heads =
      architecture == llama && !top.has("num_key_value_heads") ? c.heads : top.integer("num_key_value_heads", 1, 1024);
  c.head_dim = top.has("head_dim") ? top.integer("head_dim", 1, 1024) : 0;
  c.ffn = top.integer("intermediate_size", 1, most);
  c.context = top.integer("max_position_embeddings", 8, most);
  c.norm_eps = top.number("rms_norm_eps", 1e-12);
  c.tied_head = top.truth("tie_word_embeddings", false);
  model.vocabulary = top.integer("vocab_size", 1, 1 << 24);
  read_rope(top, file, c);
  read_options(top, architecture, c);
  for (const char* key : ignored_keys) top.ignore(key);
  top.expect_no_other_keys();
  check_sizes(top, c);
  return model;
}

}  // namespace notellm
