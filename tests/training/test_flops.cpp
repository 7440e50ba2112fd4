#include <gtest/gtest.h>

#include "training/flops.h"

namespace notellm {
namespace {

ModelConfig small_model(int layers) {
  ModelConfig config;
  config.dim = 8;
  config.layers = layers;
  config.heads = 2;
  config.kv_heads = 1;
  config.head_dim = 4;
  config.ffn = 10;
  config.note_dim = 3;
  return config;
}

// A prefix of 2 tokens; two notes of 3 and 1 tokens after it.
PackedBatch small_batch() {
  PackedBatch batch;
  batch.tokens.resize(6);
  batch.segments = {{0, 2, -1}, {2, 5, 0}, {5, 6, 0}};
  batch.note_rows = {3, 5};
  batch.label_rows = {4, 5};
  return batch;
}

// One layer, which is the last: keys and values for 6 tokens, everything else for the 3 rows that are read (3, 4, 5).
//   kv         2·6·8·8                            =  768
//   q, o, ffn  2·3·(8·8 + 8·8 + 8·20 + 10·8)      = 2208
//   attention  keys seen by rows 3, 4, 5: 4 + 5 + 3 = 12; 2 products of 2·12·8   = 384
//   vectors    2·2·8·3                            =   96;  LM head 2·2·8·50 = 1600
TEST(Flops, OneLayerByHand) {
  const StepFlops flops = batch_flops(small_model(1), small_batch(), 50, false);
  EXPECT_EQ(flops.layers, 3 * (768 + 2208));
  EXPECT_EQ(flops.attention, 3.5 * 384);
  EXPECT_EQ(flops.heads, 3 * (96 + 1600));
  EXPECT_EQ(flops.infonce, 0);
  EXPECT_EQ(flops.model(), 3 * (768 + 2208 + 384 + 96 + 1600));
}

// The first layer computes everything for all 6 tokens, which see 1 + 2 + 3 + 4 + 5 + 3 = 18 keys.
TEST(Flops, EarlierLayersComputeAllRows) {
  const StepFlops one = batch_flops(small_model(1), small_batch(), 50, false);
  const StepFlops two = batch_flops(small_model(2), small_batch(), 50, false);
  EXPECT_EQ(two.layers - one.layers, 3 * (768 + 2.0 * 6 * 368));
  EXPECT_EQ(two.attention - one.attention, 3.5 * 2 * 2 * 18 * 8);
  EXPECT_EQ(two.heads, one.heads);
}

// The pass before it reads the note rows 3 and 5 alone: 4 + 3 keys.
TEST(Flops, FirstPassReadsNoteRowsOnly) {
  const StepFlops once = batch_flops(small_model(1), small_batch(), 50, false);
  const StepFlops twice = batch_flops(small_model(1), small_batch(), 50, true);
  EXPECT_EQ(twice.layers - once.layers, 768 + 2.0 * 2 * 368);
  EXPECT_EQ(twice.attention - once.attention, 2 * 2 * 7 * 8);
  EXPECT_EQ(twice.heads - once.heads, 96);
  EXPECT_EQ(twice.model(), once.model());
}

// All of the first layer, for 6 tokens, but its down projection of 10 × 8: and its attention over 18 keys.
TEST(Flops, RecomputationIsAnotherForwardPass) {
  const StepFlops once = batch_flops(small_model(2), small_batch(), 50, false);
  const StepFlops twice = batch_flops(small_model(2), small_batch(), 50, false, true);
  EXPECT_EQ(twice.layers - once.layers, 2.0 * 6 * (8 * 8 + 8 * 8 + 8 * 20) + 768);
  EXPECT_EQ(twice.attention - once.attention, 2 * 2 * 18 * 8);
  EXPECT_EQ(twice.model(), once.model());
  EXPECT_EQ(batch_flops(small_model(1), small_batch(), 50, false, true).total(),
            batch_flops(small_model(1), small_batch(), 50, false).total());
}

TEST(Flops, InfonceCountsFourProductsOneOfThemTwice) {
  EXPECT_EQ(infonce_flops(3, 8, 5).total(), 4 * 2 * 3 * 8 * 5);
  EXPECT_EQ(infonce_flops(3, 8, 5).model(), 3 * 2 * 3 * 8 * 5);
}

TEST(Flops, SumsKeepWhatIsRepeated) {
  StepFlops sum = infonce_flops(3, 8, 5);
  sum += infonce_flops(1, 8, 5);
  EXPECT_EQ(sum.repeated, 2 * 4 * 8 * 5);
}

}  // namespace
}  // namespace notellm
