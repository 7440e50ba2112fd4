#!/usr/bin/env python3
"""Greedy decoding in transformers, of what tests/bench/bench_decode.cpp decodes: tokens/s.

A LlamaForCausalLM of random weights in bf16 (dim 512 x 8 layers, vocabulary 8,192), prompts of 140 tokens, 64 new tokens by
generate() with its key-value cache. Prints a line a size: notes, tokens/s (median of the runs), milliseconds of the prompts.
Needs torch and transformers; tests/bench/decode_transformers.sh makes the environment.
"""
import argparse
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

PROMPT, NEW, VOCABULARY = 140, 64, 8192


def seconds(model, ids, tokens, runs):
    times = []
    for run in range(runs + 1):
        start = time.perf_counter()
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens,
                             min_new_tokens=tokens, pad_token_id=0)
        assert out.shape[1] == ids.shape[1] + tokens
        if run > 0:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notes", nargs="*", type=int, default=[1, 32])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1408, num_hidden_layers=8,
                         num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=256, tie_word_embeddings=True)
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    with torch.inference_mode():
        for notes in options.notes:
            ids = torch.randint(3, VOCABULARY, (notes, PROMPT))
            whole, first = seconds(model, ids, NEW, options.runs), seconds(model, ids, 1, options.runs)
            print(f"transformers  bf16  {notes:2} notes  {notes * NEW / whole:7.0f} tokens/s  steps alone "
                  f"{notes * (NEW - 1) / (whole - first):7.0f} tokens/s  prompts {1e3 * first:.1f} ms", flush=True)


if __name__ == "__main__":
    main()
