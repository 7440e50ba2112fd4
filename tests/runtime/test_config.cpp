#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <random>

#include "runtime/config.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace notellm {
namespace {

enum class Precision { fp32, bf16 };

struct ModelPart {
  int dim = 64;
  float eps = 1e-5f;
  std::vector<int> widths = {1, 2};

  void fields(Fields& f) {
    f.add("dim", "hidden size", dim, at_least(1));
    f.add("eps", "added to the mean square", eps, between(0, 1));
    f.add("widths", "sizes of the layers", widths, between(1, 100));
  }
};

struct TrainPart {
  double lr = 0.001;
  int64_t steps = 10;
  Precision precision = Precision::fp32;
  ModelPart teacher;

  void fields(Fields& f) {
    f.add("lr", "learning rate", lr, between(0, 10));
    f.add("steps", "optimizer steps", steps, at_least(0));
    f.add("precision", "of weights and activations", precision, {{"fp32", Precision::fp32}, {"bf16", Precision::bf16}});
    f.section("teacher", teacher);
  }
};

struct Config {
  std::string name = "run";
  bool shuffle = true;
  std::vector<std::string> files;
  ModelPart model;
  TrainPart train;
  int seed = 0;

  void fields(Fields& f) {
    f.add("name", "of the run", name);
    f.add("shuffle", "the order", shuffle);
    f.add("files", "to read", files);
    f.section("model", model);
    f.section("train", train);
    f.add("seed", "of the random numbers", seed);
  }
};

struct Described {
  Config config;
  Fields fields;
  Described() { config.fields(fields); }
};

Config read(const std::string& text, const std::vector<std::string>& overrides = {}) {
  Described d;
  read_config_text(d.fields, text, "run.yaml", overrides);
  return d.config;
}

std::string print(Config config) {
  Fields fields;
  config.fields(fields);
  return print_config(fields);
}

TEST(Config, ReadsEveryType) {
  const Config c = read(
      "name: first\n"
      "shuffle: false\n"
      "files: [a, 'b c']\n"
      "model:\n"
      "  dim: 128\n"
      "  widths:\n"
      "    - 3\n"
      "    - 4\n"
      "train:\n"
      "  lr: 3e-4\n"
      "  steps: 5000000000\n"
      "  precision: bf16\n"
      "  teacher: {dim: 7, eps: 0.5}\n"
      "seed: -1\n");
  EXPECT_EQ(c.name, "first");
  EXPECT_FALSE(c.shuffle);
  EXPECT_EQ(c.files, (std::vector<std::string>{"a", "b c"}));
  EXPECT_EQ(c.model.dim, 128);
  EXPECT_EQ(c.model.eps, 1e-5f);  // not given: the default
  EXPECT_EQ(c.model.widths, (std::vector<int>{3, 4}));
  EXPECT_EQ(c.train.lr, 3e-4);
  EXPECT_EQ(c.train.steps, 5'000'000'000);
  EXPECT_EQ(c.train.precision, Precision::bf16);
  EXPECT_EQ(c.train.teacher.dim, 7);
  EXPECT_EQ(c.train.teacher.eps, 0.5f);
  EXPECT_EQ(c.seed, -1);
}

TEST(Config, NothingGivenLeavesTheDefaults) {
  for (const char* text : {"", "# only a comment\n", "model:\n", "model: {}\n"})
    EXPECT_EQ(print(read(text)), print(Config())) << text;
}

TEST(Config, OverridesComeAfterTheFileInTheirOrder) {
  const Config c = read("seed: 1\nmodel:\n  dim: 2\n", {"model.dim=3", "files=[x, y]", "train.teacher.dim=4",
                                                        "model.dim=5", "name=a=b", "model={eps: 0.25}"});
  EXPECT_EQ(c.seed, 1);
  EXPECT_EQ(c.model.dim, 5);
  EXPECT_EQ(c.model.eps, 0.25f);
  EXPECT_EQ(c.train.teacher.dim, 4);
  EXPECT_EQ(c.files, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(c.name, "a=b");
}

TEST(Config, UnknownKeysNameTheNearest) {
  EXPECT_ERROR(usage, "run.yaml:2: unknown key 'modle'; the nearest known key is 'model'",
               read("seed: 1\nmodle:\n  dim: 1\n"));
  EXPECT_ERROR(usage, "run.yaml:3: unknown key 'model.dmi'; the nearest known key is 'model.dim'",
               read("seed: 1\nmodel:\n  dmi: 1\n"));
  EXPECT_ERROR(usage, "run.yaml:1: unknown key 'lr'; the nearest known key is 'train.lr'", read("lr: 1\n"));
  EXPECT_ERROR(usage, "--set trian.lr=1: unknown key 'trian.lr'; the nearest known key is 'train.lr'",
               read("", {"trian.lr=1"}));
  EXPECT_ERROR(usage, "unknown key 'model.dim.x'", read("", {"model.dim.x=1"}));
  EXPECT_ERROR(usage, "run.yaml:1: 'model.dim': write 'model:' and below it, indented, 'dim: …'",
               read("model.dim: 3\n"));
}

TEST(Config, WrongTypesNameFileLineAndKey) {
  const auto expect = [](const std::string& line, const std::string& message) {
    SCOPED_TRACE(line);
    EXPECT_ERROR(usage, message, read("# first\n" + line));
  };
  expect("seed: x\n", "run.yaml:2: seed is 'x', but must be: integer");
  expect("seed: 1.5\n", "seed is '1.5', but must be: integer");
  expect("seed: '3'\n", "seed is '3', but must be: integer");
  expect("seed:\n", "run.yaml:2: seed is a missing value, but must be: integer");
  expect("seed: 3000000000\n", "seed is '3000000000', but must be: integer");
  expect("seed: [1]\n", "seed is a list, but must be: integer");
  expect("seed: {a: 1}\n", "seed is a section, but must be: integer");
  expect("train: {lr: nan}\n", "train.lr is 'nan', but must be: number");
  expect("train: {lr: .nan}\n", "train.lr is '.nan', but must be: number");
  expect("train: {lr: 1.0.0}\n", "train.lr is '1.0.0', but must be: number");
  expect("train:\n  lr: 1e999\n", "run.yaml:3: train.lr is '1e999', but must be: number");
  expect("train: {precision: fp16}\n", "train.precision is 'fp16', but must be: fp32 | bf16");
  expect("shuffle: yes\n", "shuffle is 'yes', but must be: true or false");
  expect("shuffle: 1\n", "shuffle is '1', but must be: true or false");
  expect("shuffle: 'true'\n", "shuffle is 'true', but must be: true or false");
  expect("name:\n", "name is a missing value, but must be: text");
  expect("name: [a]\n", "name is a list, but must be: text");
  expect("files: a\n", "files is 'a', but must be: list of texts");
  expect("files: [a, [b]]\n", "files is a list, but must be: list of texts");
  expect("model: {widths: 3}\n", "model.widths is '3', but must be: list of integers, 1 to 100, such as [1, 2]");
  expect("model: {widths: [1, x]}\n", "model.widths is a list, but must be: list of integers, 1 to 100");
  expect("model: 3\n", "run.yaml:2: model is '3', but must be a section, with keys such as model.dim");
  expect("model: [1]\n", "model is a list, but must be a section");
}

TEST(Config, BoundsAreIncluded) {
  EXPECT_EQ(read("model: {dim: 1}\n").model.dim, 1);
  EXPECT_EQ(read("train: {lr: 10}\n").train.lr, 10);
  EXPECT_ERROR(usage, "model.dim is '0', but must be: integer, at least 1", read("model: {dim: 0}\n"));
  EXPECT_ERROR(usage, "train.lr is '10.5', but must be: number, 0 to 10", read("train: {lr: 10.5}\n"));
  EXPECT_ERROR(usage, "train.lr is '.inf', but must be: number, 0 to 10", read("train: {lr: .inf}\n"));
  EXPECT_ERROR(usage, "model.widths is a list, but must be: list of integers, 1 to 100",
               read("model: {widths: [0]}\n"));
}

TEST(Config, OtherMistakes) {
  EXPECT_ERROR(usage, "run.yaml:4: model.dim is given twice, first in line 2",
               read("model:\n  dim: 1\n  eps: 0\n  dim: 2\n"));
  EXPECT_ERROR(usage, "run.yaml:3: seed is given twice, first in line 1", read("seed: 1\nname: x\nseed: 1\n"));
  EXPECT_ERROR(usage, "run.yaml:2: this is not YAML", read("seed: 1\n  name: : [\n"));
  EXPECT_ERROR(usage, "run.yaml:1: must be lines of 'key: value', not a list", read("- 1\n"));
  EXPECT_ERROR(usage, "run.yaml: has 2 YAML documents", read("seed: 1\n---\nseed: 2\n"));
  EXPECT_ERROR(usage, "a key must be a single word", read("[a, b]: 1\n"));
  EXPECT_ERROR(usage, "'--set seed': an override is written section.key=value", read("", {"seed"}));
  EXPECT_ERROR(usage, "--set seed=[: this is not YAML", read("", {"seed=["}));
  EXPECT_ERROR(usage, "--set seed=: seed is a missing value", read("", {"seed="}));
}

TEST(Config, ReadsFiles) {
  const test::TempDir folder;
  std::ofstream(folder / "a.yaml") << "seed: 3\nmodel:\n  dim: 0\n";
  Described d;
  EXPECT_ERROR(usage, (folder / "a.yaml").string() + ":3: model.dim is '0'",
               read_config(d.fields, folder / "a.yaml", {}));
  EXPECT_ERROR(io, "there is no configuration file no/such.yaml", read_config(d.fields, "no/such.yaml", {}));
  read_config(d.fields, "", {"seed=4"});
  EXPECT_EQ(d.config.seed, 4);
}

TEST(Config, PrintsAsYaml) {
  EXPECT_EQ(print(Config()),
            "name: run\n"
            "shuffle: true\n"
            "files: []\n"
            "model:\n"
            "  dim: 64\n"
            "  eps: 1e-05\n"
            "  widths: [1, 2]\n"
            "train:\n"
            "  lr: 0.001\n"
            "  steps: 10\n"
            "  precision: fp32\n"
            "  teacher:\n"
            "    dim: 64\n"
            "    eps: 1e-05\n"
            "    widths: [1, 2]\n"
            "seed: 0\n");
}

TEST(Config, PrintedFloatsReadBackToTheSameBits) {
  std::mt19937_64 random(7);
  Described d, back;
  const auto check = [&](double lr, float eps) {
    d.config.train.lr = lr;
    d.config.model.eps = eps;
    read_config_text(back.fields, print_config(d.fields), "printed", {});
    ASSERT_EQ(back.config.train.lr, lr);
    ASSERT_EQ(back.config.model.eps, eps);
  };
  check(0, std::numeric_limits<float>::denorm_min());
  check(1e-300, 1);
  std::uniform_real_distribution<double> uniform(0, 1);
  for (int i = 0; i < 200; ++i) check(uniform(random) * 10, static_cast<float>(std::pow(uniform(random), 20)));
}

TEST(Config, PrintedTextsReadBackTheSame) {
  for (const std::string text :
       {"",           "null", "~",  "true",   "3", "a: b", "- x", "#c", " lead", "trail ", "tab\tnew\nline",
        "'",          "\"",   "\\", "[a, b]", "{", "*x",   "&x",  "!t", "%",     "@",      "`",
        "标题：“词”", "a,b",  "?",  "-",      ":", "\x01"}) {
    Config config;
    config.name = text;
    config.files = {text, "x", text};
    const Config back = read(print(config));
    EXPECT_EQ(back.name, text) << print(config);
    EXPECT_EQ(back.files, config.files) << print(config);
  }
}

TEST(Config, NumbersWithoutBoundsAreFinite) {
  double any = 1, decay = 2;
  float narrow = 3;
  Fields fields;
  fields.add("any", "", any);
  fields.add("decay", "", decay, at_least(0));
  fields.add("narrow", "", narrow);
  for (const std::string value : {".inf", "-.inf", "+.inf", ".Inf", "inf", "infinity", ".nan", "nan", "1e999"}) {
    EXPECT_ERROR(usage, "--set any=" + value + ": any is '" + value + "', but must be: number",
                 read_config_text(fields, "", "", {"any=" + value}));
    EXPECT_ERROR(usage, "f:1: decay is '" + value + "', but must be: number, at least 0",
                 read_config_text(fields, "decay: " + value + "\n", "f", {}));
  }
  EXPECT_ERROR(usage, "narrow is '1e39', but must be: number", read_config_text(fields, "narrow: 1e39\n", "f", {}));
  EXPECT_EQ(any, 1);
  EXPECT_EQ(decay, 2);
  EXPECT_EQ(narrow, 3);
}

TEST(Config, DescribesAsATable) {
  Described d;
  const std::string table = describe_config(d.fields);
  EXPECT_NE(table.find("key                   default  type\n"), std::string::npos) << table;
  EXPECT_NE(table.find("model.dim             64       integer, at least 1         hidden size\n"), std::string::npos)
      << table;
  EXPECT_NE(table.find("train.precision       fp32     fp32 | bf16                 of weights and activations\n"),
            std::string::npos)
      << table;
}

TEST(Config, AKeyIsDescribedOnce) {
  Described d;
  int again = 0;
  EXPECT_ERROR(internal, "the key seed is described twice", d.fields.add("seed", "", again));
}

}  // namespace
}  // namespace notellm
