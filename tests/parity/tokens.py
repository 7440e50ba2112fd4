"""Compares tokens with the `tokenizers` library, and both programs' speed: see tokens.sh."""

import argparse
import json
import lzma
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "true"
ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/golden/tokenizers"))


def read_notes(path):
    with lzma.open(path, "rt") as file:
        notes = [json.loads(line) for line in file]
    texts = [f"{note['name']}: {note['title']}\n{note['content']}" for note in notes]
    return texts + [f"{note['name']}: {note['title']}" for note in notes[: 100_000 - len(texts)]]


def ours(program, tokenizer, mode, threads, packed, repeats):
    done = subprocess.run([program, tokenizer, mode, str(threads), str(repeats)], input=packed, capture_output=True)
    if done.returncode != 0:
        sys.exit(done.stderr.decode())
    words = memoryview(done.stdout).cast("i")
    tokens, at = [], 0
    while at < len(words):
        tokens.append(words[at + 1 : at + 1 + words[at]].tolist())
        at += 1 + words[at]
    return tokens, float(done.stderr)


def theirs(encode, texts, repeats):
    """The tokens, and the shortest time."""
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        encodings = encode(texts, add_special_tokens=False)
        best = min(best, time.perf_counter() - begin)
        tokens = [encoding.ids for encoding in encodings]
    return tokens, best


def pack(texts):
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def count_differences(name, texts, wanted, got):
    bad = [i for i in range(len(texts)) if wanted[i] != got[i]]
    for i in bad[:3]:
        print(f"  {name}: {texts[i][:200]!r}\n    the library {wanted[i][:40]}\n    notellm     {got[i][:40]}")
    return len(bad) + (len(wanted) != len(got))


def fresh(tokenizer):
    """The same with empty caches."""
    from tokenizers import Tokenizer

    again = Tokenizer.from_str(tokenizer.to_str())
    again.encode_special_tokens = True
    return again


def compare(args, name, tokenizer_file, tokenizer, real, synthetic, failures):
    texts = [text.encode() for text in real] + synthetic
    words = [text.decode("utf-8", "replace") for text in texts]
    wanted, _ = theirs(fresh(tokenizer).encode_batch, words, 1)
    bad = 0
    for mode in ("words", "whole"):
        got, _ = ours(args.program, tokenizer_file, mode, args.threads, pack(texts), 1)
        bad += count_differences(f"{name}, {mode}", texts, wanted, got)
    # Speed, on the real texts: the library's best of both of its functions, its caches warm from the run before.
    library = fresh(tokenizer)
    slow = theirs(library.encode_batch, real, args.repeats)[1]
    fast = theirs(library.encode_batch_fast, real, args.repeats)[1]
    packed = pack([text.encode() for text in real])
    own = ours(args.program, tokenizer_file, "words", args.threads, packed, args.repeats)[1]
    whole = ours(args.program, tokenizer_file, "whole", args.threads, packed, args.repeats)[1]
    size = sum(len(text.encode()) for text in real) / 1e6
    print(f"{name:12} {len(texts):8} {bad:6}   {size / slow:8.2f} {size / fast:8.2f} {size / own:8.2f} {size / whole:8.2f}"
          f"   {min(slow, fast) / own:6.1f}", flush=True)
    if bad:
        failures.append(f"{name}: {bad} texts with other tokens")
    if own > min(slow, fast):
        failures.append(f"{name}: slower than the library")


def compare_sentencepiece(args, path, real, failures):
    """A SentencePiece model with transformers' LlamaTokenizer (legacy: false)."""
    from transformers import LlamaTokenizer

    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "tokenizer.model").write_bytes(pathlib.Path(path).read_bytes())
        library = LlamaTokenizer.from_pretrained(folder, legacy=False)
    sample = [text for text in real if not any(s in text for s in ("<s>", "</s>", "<unk>"))][:: args.stride]
    wanted = [library(text, add_special_tokens=False)["input_ids"] for text in sample]
    texts = [text.encode() for text in sample]
    got, _ = ours(args.program, path, "words", args.threads, pack(texts), 1)
    bad = count_differences(path, texts, wanted, got)
    print(f"{path}: {len(texts)} texts, {bad} differ from {type(library).__name__}", flush=True)
    if bad:
        failures.append(f"{path}: {bad} texts with other tokens")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--notes", required=True)
    parser.add_argument("--vocabulary", type=int, default=16_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stride", type=int, default=10)
    parser.add_argument("--sentencepiece", nargs="*", default=[])
    parser.add_argument("--styles", nargs="*")
    args = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    import styles  # reads the library, and so RAYON_NUM_THREADS

    real = read_notes(args.notes)
    synthetic = styles.stumbling_texts() + styles.random_texts(20_000, seed=7)
    failures = []
    print(f"{len(real)} real texts and {len(synthetic)} synthetic ones, {args.threads} threads, vocabularies of "
          f"{args.vocabulary}; MB/s of real text, best of {args.repeats}")
    print(f"{'style':12} {'texts':>8} {'differ':>6}   {'batch':>8} {'fast':>8} {'words':>8} {'whole':>8}   {'times':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.styles or styles.STYLES:
            tokenizer, config = styles.STYLES[name](real[::4], args.vocabulary)
            file = pathlib.Path(folder) / name / "tokenizer.json"
            file.parent.mkdir()
            file.write_text(tokenizer.to_str())
            (file.parent / "tokenizer_config.json").write_text(json.dumps(config))
            compare(args, name, str(file), tokenizer, real, synthetic, failures)
    for path in args.sentencepiece:
        compare_sentencepiece(args, path, real, failures)
    for failure in failures:
        print(f"FAILED {failure}")
    sys.exit(bool(failures))


main()
