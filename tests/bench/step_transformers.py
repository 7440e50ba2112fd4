#!/usr/bin/env python3
"""The training step of configs/bench_step.yaml in transformers and torch, on the same notes: notes/s.

The same objective as notellm's (InfoNCE over all notes of the step, token loss on the output, alpha 0.01), AdamW, clipping, on
a LlamaForCausalLM of the same shape and the notes of the first pairs of the shards, padded to the longest, as is common.
  plain     all rows through the LM head, as commonly written
  labels    LM head on the label rows only
  compiled  the same under torch.compile, after warm-up
Prints one line a variant: name, precision, notes/s (median of the steps), tokens a note.
Needs torch, transformers, h5py; tests/bench/step_transformers.sh makes the environment.
"""
import argparse
import json
import statistics
import time

import h5py
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM


class Ragged:
    def __init__(self, file, name):
        self.offsets, self.values = file[name + "/offsets"][:], file[name + "/values"][:]

    def __getitem__(self, i):
        return self.values[self.offsets[i]:self.offsets[i + 1]].tolist()


def read_notes(folder, pairs):
    """Sequences of the category task of the first pairs: tokens, note row, first label row."""
    prompt = json.load(open(folder + "/shards.json"))["prompt"]
    files = [h5py.File(f"{folder}/notes-{i:05}.h5") for i in range(len(__import__("glob").glob(folder + "/notes-*.h5")))]
    tables = [(Ragged(f, "category_input"), Ragged(f, "category")) for f in files]
    sizes = [len(t[0].offsets) - 1 for t in tables]

    def note(row):
        for (inputs, categories), size in zip(tables, sizes):
            if row < size:
                return inputs[row], categories[row]
            row -= size

    with h5py.File(folder + "/pairs-00000.h5") as f:
        queries, targets = f["train/query"][:], f["train/target"][:]
    step = len(queries) // pairs
    sequences = []
    for p in range(pairs):
        for row in (queries[p * step], targets[p * step]):
            part, category = note(int(row))
            head = prompt["category_instruction"] + part
            tokens = head + [prompt["emb"]] + prompt["category_guidance"] + category
            labels = [-100] * (len(tokens) - len(category) - 1) + category + [prompt["eos"]]
            sequences.append((tokens, len(head) - 1, labels))
    return sequences, prompt["vocabulary"]


class Model(torch.nn.Module):
    def __init__(self, vocabulary, note_dim=128):
        super().__init__()
        config = LlamaConfig(vocab_size=vocabulary, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
                             num_key_value_heads=8, max_position_embeddings=256, tie_word_embeddings=True)
        self.llama = LlamaForCausalLM(config)
        self.projection = torch.nn.Linear(512, note_dim, bias=False)
        self.tau = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, ids, mask, note_rows, labels, label_rows):
        hidden = self.llama.model(input_ids=ids, attention_mask=mask).last_hidden_state
        n = len(ids)
        z = F.normalize(self.projection(hidden[torch.arange(n), note_rows]).float(), dim=-1)
        scores = z @ z.T * self.tau.exp()
        scores = scores.masked_fill(torch.eye(n, dtype=torch.bool), float("-inf"))
        contrastive = F.cross_entropy(scores, torch.arange(n) ^ 1)
        if label_rows is None:
            logits, wanted = self.llama.lm_head(hidden).float().flatten(0, 1), labels.flatten()
        else:
            logits, wanted = self.llama.lm_head(hidden.flatten(0, 1)[label_rows]).float(), labels.flatten()[label_rows]
        return (contrastive + 0.01 * F.cross_entropy(logits, wanted, ignore_index=-100)) / 1.01


def measure(name, precision, sequences, vocabulary, steps):
    torch.manual_seed(1)
    longest = max(len(s[0]) for s in sequences)
    ids = torch.tensor([s[0] + [0] * (longest - len(s[0])) for s in sequences])
    labels = torch.tensor([s[2] + [-100] * (longest - len(s[2])) for s in sequences])
    mask = torch.tensor([[1] * len(s[0]) + [0] * (longest - len(s[0])) for s in sequences])
    note_rows = torch.tensor([s[1] for s in sequences])
    label_rows = None if name == "plain" else (labels.flatten() != -100).nonzero().flatten()
    model = Model(vocabulary)
    run = torch.compile(model) if name == "compiled" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = run(ids, mask, note_rows, labels, label_rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    for _ in range(2):
        step()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    tokens = sum(len(s[0]) for s in sequences) / len(sequences)
    print(f"transformers {name:<9} {precision}  {len(sequences) / statistics.median(times):6.2f} notes/s  "
          f"{tokens:.0f} tokens a note, padded to {longest}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="folder of shards of configs/bench_step.yaml")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variants", nargs="*", default=["plain:fp32", "plain:bf16", "labels:bf16", "compiled:bf16", "compiled:fp32"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sequences, vocabulary = read_notes(options.shards, options.pairs)
    for variant in options.variants:
        measure(*variant.split(":"), sequences, vocabulary, options.steps)


if __name__ == "__main__":
    main()
