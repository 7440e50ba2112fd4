#!/usr/bin/env python3
"""Makes texts.json and STYLE/tokenizer.json, tokenizer_config.json and golden.json, with the `tokenizers` library.

    python3 -m venv VENV && VENV/bin/pip install tokenizers==0.23.3
    VENV/bin/python tests/golden/tokenizers/make.py NOTES.jsonl.xz

Small tokenizers of each style (styles.py), trained on every 16th note. texts.json has texts, in hexadecimal, and prompts
as the text before [EMB] and the one after it. golden.json has what the library gives: `ids` of the texts, special tokens
in them being text; `decoded`, the text of these ids where it is not the original one; `prompts`, the ids of the whole
prompts with [EMB] as a special token and what the post-processor adds.
"""

import json
import lzma
import pathlib
import sys

from tokenizers import AddedToken, Tokenizer

import styles

VOCABULARY = 900


def notes(path, stride):
    with lzma.open(path, "rt") as file:
        return [json.loads(line) for i, line in enumerate(file) if i % stride == 0]


def prompts(sample):
    result = []
    for note in sample:
        content = " ".join(note["content"].split())[:300]
        result.append((f"Extract it. {{'title': {note['name']}: {note['title']}, 'content': {content}}} The word is:\"",
                       f"\". The category is: {note['category']}"))
    result.append(("笔记：{\"标题\":\"跑步\"}，压缩为一个词：“", "”。生成笔记类目：运动。"))
    result.append((" x", " y"))
    return result


def golden(tokenizer, texts, pairs):
    tokenizer.encode_special_tokens = True
    words = [text.decode("utf-8", "replace") for text in texts]
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in words]
    decoded = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in ids]
    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.add_special_tokens([AddedToken("[EMB]", special=True)])
    return {"ids": ids, "decoded": [back if back != text else None for back, text in zip(decoded, words)],
            "prompts": [whole.encode(before + "[EMB]" + after).ids for before, after in pairs]}


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def main():
    sample = notes(sys.argv[1], 16)
    corpus = [f"{note['name']}: {note['title']}\n{note['content']}" for note in sample]
    texts = styles.stumbling_texts() + styles.random_texts(120, seed=1)
    pairs = prompts(sample[:: len(sample) // 12])
    here = pathlib.Path(__file__).parent
    (here / "texts.json").write_text(compact({"texts": [text.hex() for text in texts], "prompts": pairs}) + "\n")
    for name, style in styles.STYLES.items():
        folder = here / name
        folder.mkdir(exist_ok=True)
        tokenizer, config = style(corpus, VOCABULARY)
        state = json.loads(tokenizer.to_str())
        (folder / "tokenizer.json").write_text(compact(state) + "\n")
        (folder / "tokenizer_config.json").write_text(compact(config) + "\n")
        again = Tokenizer.from_str((folder / "tokenizer.json").read_text())
        (folder / "golden.json").write_text(compact(golden(again, texts, pairs)) + "\n")


main()
