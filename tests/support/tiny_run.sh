# shellcheck shell=bash
# A training of a few milliseconds a step; sourced by tests that are scripts.

# write_tiny_run STEPS: notes.jsonl, clicks.tsv and config.yaml in this folder, to be prepared and trained there.
write_tiny_run() {
  awk 'BEGIN {
    for (i = 0; i < 60; ++i)
      printf "{\"id\":\"n%d\",\"title\":\"title %d of %d\",\"content\":\"some words %d %d\",\"category\":\"c%d\",\"hashtags\":[\"h%d\",\"g%d\"]}\n",
        i, i, i % 7, i * i % 11, i * 3 % 13, i % 4, i % 5, i % 3 }' >notes.jsonl
  awk 'BEGIN { for (u = 0; u < 80; ++u) { printf "u%d\t", u; for (c = 0; c < 5; ++c) printf "%sn%d", c ? " " : "", (u * 7 + c * (1 + u % 3)) % 60; print "" } }' >clicks.tsv
  cat >config.yaml <<YAML
threads: 1
data:
  notes: notes.jsonl
  shards: shards
  clicks: {files: [clicks.tsv], format: lists, heldout_share: 0.1, stop_share: 1, min_user_notes: 2, max_user_notes: 100}
  cooccurrence: {lower: 0.01, upper: 30, top: 10}
  tokenizer: {vocabulary: 400}
model: {dim: 32, layers: 2, heads: 2, kv_heads: 2, ffn: 48, note_dim: 16, context: 256}
optimizer: {learning_rate: 1.0e-3, warmup_steps: 4}
train: {steps: $1, pairs_per_step: 8, checkpoint_every: 2}
YAML
}
