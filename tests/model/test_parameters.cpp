// Where each parameter lies, what it starts as, what configurations are refused, and which rows a batch makes the model
// compute.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>

#include "model/model_input.h"
#include "model/parameters.h"
#include "model/row_share.h"
#include "tests/support/expect_error.h"
#include "tests/support/tiny_model.h"

namespace notellm {
namespace {

using test::tiny_model_config;
using test::TinyModel;

TEST(ParameterLayout, NamesShapesAndOrder) {
  ModelConfig c = tiny_model_config(2, 2);
  c.tied_head = false;
  const ParameterLayout layout(c, 64);
  std::vector<std::string> expected = {"model.embed_tokens.weight 64 12"};
  for (const std::string layer : {"model.layers.0.", "model.layers.1."})
    for (const char* rest :
         {"input_layernorm.weight 12 0", "self_attn.q_proj.weight 16 12", "self_attn.k_proj.weight 8 12",
          "self_attn.v_proj.weight 8 12", "self_attn.o_proj.weight 12 16", "post_attention_layernorm.weight 12 0",
          "mlp.gate_proj.weight 10 12", "mlp.up_proj.weight 10 12", "mlp.down_proj.weight 12 10"})
      expected.push_back(layer + rest);
  for (const char* rest :
       {"model.norm.weight 12 0", "lm_head.weight 64 12", "note_head.weight 6 12", "note_head.tau 1 0"})
    expected.push_back(rest);
  std::vector<std::string> found;
  for (const Parameter& p : layout.all()) found.push_back(fmt::format("{} {} {}", p.name, p.rows, p.cols));
  EXPECT_EQ(found, expected);
  EXPECT_EQ(layout.vocabulary(), 64);
  EXPECT_EQ(layout.at("note_head.tau").kind, ParameterKind::temperature);
  EXPECT_EQ(layout.at("lm_head.weight").kind, ParameterKind::embedding);
  EXPECT_EQ(layout.at("model.norm.weight").kind, ParameterKind::norm);
  EXPECT_ERROR(internal, "no parameter lm_head", layout.at("lm_head"));
}

// ffn 10 and kv rows of 3 · 12 elements: sizes that are no multiples of 16.
TEST(ParameterLayout, BlocksTouchOthersAreAlignedNoneOverlap) {
  ModelConfig c = tiny_model_config(3, 1);
  c.heads = 3;
  c.head_dim = 6;
  const ParameterLayout layout(c, 64);
  int64_t end = 0;
  for (const Parameter& p : layout.all()) {
    EXPECT_GE(p.offset, end) << p.name;
    end = p.offset + p.size();
    const bool continues = p.name.ends_with("v_proj.weight") || p.name.ends_with("up_proj.weight");
    EXPECT_TRUE(continues || p.offset % 16 == 0) << p.name << " at " << p.offset;
  }
  EXPECT_EQ(layout.size(), (end + 15) / 16 * 16);
  for (const std::string layer : {"model.layers.0.", "model.layers.2."}) {
    const auto after = [&](const char* a, const char* b) {
      const Parameter &first = layout.at(layer + a), &second = layout.at(layer + b);
      EXPECT_EQ(first.offset + first.size(), second.offset) << layer << b;
    };
    after("self_attn.k_proj.weight", "self_attn.v_proj.weight");
    after("mlp.gate_proj.weight", "mlp.up_proj.weight");
  }
}

// Each bucket is whole parameters, and can be cut into shards; together they are the array.
TEST(ParameterLayout, BucketsAreTheArray) {
  for (int shards : {1, 3}) {
    const ParameterLayout layout(tiny_model_config(3, 1), 64, {}, shards);
    ASSERT_EQ(layout.buckets().size(), 5u);
    int64_t end = 0;
    for (const FlatRange& bucket : layout.buckets()) {
      EXPECT_EQ(bucket.begin, end);
      EXPECT_EQ(bucket.size() % (16 * shards), 0);
      end = bucket.end;
      for (const Parameter& p : layout.all())
        EXPECT_TRUE(p.offset >= bucket.end || p.offset + p.size() <= bucket.begin ||
                    (p.offset >= bucket.begin && p.offset + p.size() <= bucket.end))
            << p.name;
    }
    EXPECT_EQ(layout.size(), end);
    EXPECT_EQ(layout.at("model.layers.0.input_layernorm.weight").offset, layout.buckets()[1].begin);
    EXPECT_EQ(layout.at("model.norm.weight").offset, layout.buckets()[4].begin);
  }
}

// The parts of a tensor group, put together by their places, are the whole, each element as often as `copies` says; and
// so are their initial values.
TEST(ParameterLayout, PartsMakeTheWhole) {
  for (int ranks : {1, 2, 4}) {
    ModelConfig c = tiny_model_config(2, 2);
    c.ffn = 12;
    c.tied_head = false;
    const ParameterLayout whole(c, 64);
    const test::FlatWeights expected(whole);
    test::initialize_flat(whole, c.init, 7, 40, 39, expected.flat);
    std::map<std::string, std::vector<int>> covered;
    for (int index = 0; index < ranks; ++index) {
      const ParameterLayout part(c, 64, {index, ranks});
      const test::FlatWeights values(part);
      test::initialize_flat(part, c.init, 7, 40, 39, values.flat);
      for (const Parameter& p : part.all()) {
        const Parameter& of_whole = whole.at(p.name);
        const float *x = p.view(values.flat).as<float>(), *y = of_whole.view(expected.flat).as<float>();
        std::vector<int>& times = covered[p.name];
        times.resize(static_cast<size_t>(of_whole.size()));
        for_row_runs(p, 0, p.size(), [&](int64_t from, int64_t at, int64_t elements) {
          for (int64_t i = 0; i < elements; ++i) {
            ++times[from + i];
            ASSERT_EQ(x[at + i], y[from + i]) << p.name << " " << from + i;
          }
        });
        if (index == ranks - 1) {
          EXPECT_EQ(times, std::vector<int>(times.size(), p.copies)) << p.name << " of " << ranks;
        }
      }
    }
  }
}

TEST(ParameterLayout, KvHeadsStandOnSeveralRanks) {
  const ModelConfig c = [] {
    ModelConfig c = tiny_model_config(1, 2);
    c.ffn = 12;
    return c;
  }();
  for (int index = 0; index < 4; ++index) {
    const ParameterLayout part(c, 64, {index, 4});
    EXPECT_EQ(part.part_config().heads, 1);
    EXPECT_EQ(part.part_config().kv_heads, 1);
    const Parameter& k = part.at("model.layers.0.self_attn.k_proj.weight");
    EXPECT_EQ(k.copies, 2);
    EXPECT_EQ(k.row_begin, index / 2 * c.head_dim);  // the kv head of query head `index`
  }
}

TEST(ParameterLayout, SizesThatDoNotDivide) {
  const auto parts = [](int ranks, auto change) {
    ModelConfig c = tiny_model_config(1, 2);
    change(c);
    const ParameterLayout layout(c, 64, {0, ranks});
  };
  EXPECT_ERROR(usage, "model.heads 4 does not divide by parallel.tensor 3", parts(3, [](ModelConfig&) {}));
  EXPECT_ERROR(usage, "model.ffn 10 does not divide by parallel.tensor 4; nearest that do: 8 and 12",
               parts(4, [](ModelConfig&) {}));
  EXPECT_ERROR(usage, "neither a divisor nor a multiple of model.kv_heads 3", parts(2, [](ModelConfig& c) {
                 c.heads = 6;
                 c.kv_heads = 3;
               }));
  EXPECT_ERROR(usage, "take 1, 2, 4", parts(3, [](ModelConfig& c) { c.heads = c.kv_heads = c.ffn = 3; }));
}

TEST(RowShare, EveryRowHasOneOwner) {
  for (int ranks : {1, 2, 4, 8})
    for (int64_t rows : {0, 1, 3, 511, 512, 513, 1300}) {
      SCOPED_TRACE(fmt::format("{} rows on {} ranks", rows, ranks));
      std::vector<int> owners(static_cast<size_t>(rows));
      int64_t most = 0, least = rows;
      for (int index = 0; index < ranks; ++index) {
        const RowShare share({index, ranks}, Device::cpu);
        int64_t next = 0;
        for (int64_t begin = 0; begin < rows; begin += tile_rows) {
          const Rows tile{begin, std::min(begin + tile_rows, rows)}, own = share.own(tile);
          EXPECT_EQ(own.begin, next);
          next = own.end;
          const auto memory = std::make_unique<float[]>(static_cast<size_t>(tile.count()));
          const Tensor all = Tensor::of(memory.get(), {tile.count()}), part = share.own_part(all);
          ASSERT_EQ(part.rows(), own.count());
          for (int64_t i = 0; i < part.rows(); ++i) {
            const int64_t row = begin + (part.as<float>() - all.as<float>()) + i;
            ++owners[row];
            EXPECT_EQ(share.place_of(row, rows), own.begin + i);
          }
        }
        EXPECT_EQ(share.own_count(rows), next);
        most = std::max(most, next);
        least = std::min(least, next);
      }
      EXPECT_EQ(owners, std::vector<int>(static_cast<size_t>(rows), 1));
      EXPECT_LE(most - least, 1);
    }
}

TEST(Weights, ViewsPointWhereNamesSay) {
  for (bool tied : {true, false}) {
    ModelConfig c = tiny_model_config(2, 2);
    c.tied_head = tied;
    const ParameterLayout layout(c, 64);
    const test::FlatWeights all(layout);
    const Weights& w = all.weights;
    const auto expect_at = [&](const Tensor& t, const std::string& name, std::vector<int64_t> shape) {
      EXPECT_EQ(t.data, layout.at(name).view(all.flat).data) << name;
      EXPECT_EQ(std::vector<int64_t>(t.shape.begin(), t.shape.begin() + t.dims), shape) << name;
    };
    expect_at(w.embedding, "model.embed_tokens.weight", {64, 12});
    expect_at(w.head, tied ? "model.embed_tokens.weight" : "lm_head.weight", {64, 12});
    expect_at(w.final_norm, "model.norm.weight", {12});
    expect_at(w.note_projection, "note_head.weight", {6, 12});
    expect_at(w.tau, "note_head.tau", {1});
    ASSERT_EQ(w.layers.size(), 2u);
    for (int l = 0; l < 2; ++l) {
      const std::string layer = fmt::format("model.layers.{}.", l);
      expect_at(w.layers[l].input_norm, layer + "input_layernorm.weight", {12});
      expect_at(w.layers[l].q, layer + "self_attn.q_proj.weight", {16, 12});
      expect_at(w.layers[l].kv, layer + "self_attn.k_proj.weight", {16, 12});
      expect_at(w.layers[l].o, layer + "self_attn.o_proj.weight", {12, 16});
      expect_at(w.layers[l].post_norm, layer + "post_attention_layernorm.weight", {12});
      expect_at(w.layers[l].gate_up, layer + "mlp.gate_proj.weight", {20, 12});
      expect_at(w.layers[l].down, layer + "mlp.down_proj.weight", {12, 10});
    }
  }
}

TEST(PaddedVocabulary, NextMultipleOf64) {
  EXPECT_EQ(padded_vocabulary(1), 64);
  EXPECT_EQ(padded_vocabulary(64), 64);
  EXPECT_EQ(padded_vocabulary(65), 128);
  EXPECT_EQ(padded_vocabulary(8193), 8256);
}

// Mean and standard deviation of n normal numbers: within 5 standard errors, std/sqrt(n) and std/sqrt(2n).
void expect_normal(const std::string& name, const float* x, int64_t n, double std) {
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < n; ++i) {
    sum += x[i];
    squares += double(x[i]) * x[i];
  }
  EXPECT_NEAR(sum / n, 0, 5 * std / std::sqrt(double(n))) << name;
  EXPECT_NEAR(std::sqrt(squares / n), std, 5 * std / std::sqrt(2.0 * n)) << name;
}

TEST(Initialize, DistributionsOfEachKind) {
  ModelConfig c = tiny_model_config();
  c.dim = 64;
  c.note_dim = 32;
  c.init = {.embedding_std = 0.5, .matrix_std = 0.02, .first_attention = FirstAttention::random, .tau = 2.5};
  const ParameterLayout layout(c, 128);
  const test::FlatWeights all(layout);
  Stream stream;
  test::initialize_flat(layout, c.init, 7, 101, 100, all.flat);
  for (const Parameter& p : layout.all()) {
    const float* x = p.view(all.flat).as<float>();
    if (p.kind == ParameterKind::embedding) expect_normal(p.name, x, 100 * p.cols, 0.5);
    if (p.kind == ParameterKind::matrix) expect_normal(p.name, x, p.size(), 0.02);
    if (p.kind == ParameterKind::norm) {
      for (int64_t i = 0; i < p.size(); ++i) ASSERT_EQ(x[i], 1.0f) << p.name;
    }
    if (p.kind == ParameterKind::temperature) {
      EXPECT_EQ(*x, 2.5f);
    }
  }
}

TEST(Initialize, SpecialTokenIsTheMeanAndPaddingIsZero) {
  ModelConfig c = tiny_model_config();
  c.tied_head = false;
  const TinyModel model(c, 3);
  for (const char* name : {"model.embed_tokens.weight", "lm_head.weight"}) {
    const Tensor table = model.layout.at(name).view(model.parameters.flat);
    for (int64_t col = 0; col < table.cols(); ++col) {
      double sum = 0;
      for (int64_t row = 0; row < 39; ++row) sum += table.as<float>()[row * table.cols() + col];
      EXPECT_FLOAT_EQ(table.as<float>()[39 * table.cols() + col], static_cast<float>(sum / 39)) << name;
      for (int64_t row = 40; row < 64; ++row) ASSERT_EQ(table.as<float>()[row * table.cols() + col], 0.0f) << name;
    }
  }
}

TEST(Initialize, PureFunctionOfTheSeed) {
  const TinyModel a(tiny_model_config(), 3), b(tiny_model_config(), 3), other(tiny_model_config(), 4);
  EXPECT_EQ(std::memcmp(a.parameters.flat.data, b.parameters.flat.data, a.parameters.flat.bytes()), 0);
  // Every matrix of another seed is another one, and no two matrices of the same shape are alike.
  std::set<float> first_elements;
  int matrices = 0;
  for (const Parameter& p : a.layout.all()) {
    if (p.kind != ParameterKind::matrix && p.kind != ParameterKind::embedding) continue;
    const float x = *p.view(a.parameters.flat).as<float>();
    EXPECT_NE(x, *p.view(other.parameters.flat).as<float>()) << p.name;
    first_elements.insert(x);
    ++matrices;
  }
  EXPECT_EQ(static_cast<int>(first_elements.size()), matrices);
}

TEST(Initialize, FirstAttentionAverage) {
  ModelConfig c = tiny_model_config(2, 4);
  c.head_dim = 3;
  c.heads = c.kv_heads = 4;
  const TinyModel random(c);
  c.init.first_attention = FirstAttention::average;
  const TinyModel average(c);
  for (const Parameter& p : random.layout.all()) {
    const auto before = p.view(random.parameters.flat).span<float>(),
               after = p.view(average.parameters.flat).span<float>();
    const bool query_or_key =
        p.name == "model.layers.0.self_attn.q_proj.weight" || p.name == "model.layers.0.self_attn.k_proj.weight";
    const bool value_or_output =
        p.name == "model.layers.0.self_attn.v_proj.weight" || p.name == "model.layers.0.self_attn.o_proj.weight";
    for (int64_t i = 0; i < p.size(); ++i) {
      const float expected = query_or_key      ? 0.1f * before[i]
                             : value_or_output ? float(i / p.cols == i % p.cols)
                                               : before[i];
      ASSERT_FLOAT_EQ(after[i], expected) << p.name << " " << i;
    }
  }
}

TEST(Initialize, RefusesWhatDoesNotFit) {
  const ModelConfig c = tiny_model_config();
  const TinyModel model(c);
  const Tensor flat = model.parameters.flat;
  Stream stream;
  EXPECT_ERROR(internal, "row 40 of 40 tokens", test::initialize_flat(model.layout, c.init, 1, 40, 40, flat));
  EXPECT_ERROR(internal, "row 0 of", test::initialize_flat(model.layout, c.init, 1, 40, 0, flat));
  EXPECT_ERROR(internal, "of 65 tokens", test::initialize_flat(model.layout, c.init, 1, 65, 39, flat));
}

TEST(ModelConfig, FinishDerivesTheHeadSize) {
  ModelConfig c;
  c.finish();
  EXPECT_EQ(c.head_dim, 32);
  EXPECT_EQ(c.q_dim(), 192);
  EXPECT_EQ(c.kv_dim(), 384);
}

TEST(ModelConfig, FinishNamesTheKeyThatDoesNotFit) {
  const auto finish = [](auto change) {
    ModelConfig c;
    change(c);
    c.finish();
  };
  EXPECT_ERROR(usage, "model.dim 100 does not divide by model.heads 6; nearest dims that do: 96 and 102",
               finish([](ModelConfig& c) { c.dim = 100; }));
  EXPECT_ERROR(usage, "model.head_dim 33 is odd", finish([](ModelConfig& c) { c.head_dim = 33; }));
  EXPECT_ERROR(usage, "model.head_dim 31 is odd", finish([](ModelConfig& c) { c.dim = 186; }));
  EXPECT_ERROR(usage, "model.heads 6 is not a multiple of model.kv_heads 4",
               finish([](ModelConfig& c) { c.kv_heads = 4; }));
  for (int kv_heads : {3, 6})
    EXPECT_ERROR(usage, "model.init.first_attention: average needs kv_heads = heads", finish([&](ModelConfig& c) {
                   c.kv_heads = kv_heads;
                   if (kv_heads == 6) c.head_dim = 16;
                   c.init.first_attention = FirstAttention::average;
                 }));
}

// A prefix of 3 tokens, a note of 4 that uses it, a note of 5 of its own.
PackedBatch two_notes() {
  PackedBatch b;
  b.tokens = {1, 5, 6, 7, 8, 39, 9, 1, 7, 39, 9, 9};
  b.positions = {0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4};
  b.segments = {{0, 3, -1}, {3, 7, 0}, {7, 12, -1}};
  b.note_rows = {8, 4};
  b.note_ids = {70, 71};
  b.label_rows = {4, 6, 10, 11};
  b.labels = {3, 2, 4, 2};
  return b;
}

std::vector<int32_t> values(Tensor t) { return {t.as<int32_t>(), t.as<int32_t>() + t.size()}; }

TEST(ModelInput, RowsThatAreReadAndTheirPlaces) {
  const PackedBatch batch = two_notes();
  ModelInput input;
  input.set(batch, 64, true);
  EXPECT_EQ(input.tokens(), 12);
  EXPECT_EQ(input.hidden_rows(), 5);  // rows 4 (read twice), 6, 8, 10, 11
  EXPECT_EQ(values(input.note_places()), (std::vector<int32_t>{2, 0}));
  EXPECT_EQ(values(input.label_places()), (std::vector<int32_t>{0, 1, 3, 4}));

  input.set(batch, 64, false);  // the same object again, now without labels
  EXPECT_EQ(input.hidden_rows(), 2);
  EXPECT_EQ(values(input.note_places()), (std::vector<int32_t>{1, 0}));
  EXPECT_EQ(input.label_places().size(), 0);
}

}  // namespace
}  // namespace notellm
