#!/usr/bin/env python3
"""Golden values of evaluation/text_metrics.h by sacrebleu and rouge-score: make.py > golden.json

Needs PyPI's sacrebleu and rouge-score. Texts are made of a few words and signs, so that n-grams match now and then;
{"kind", "candidates", "references", "bleu", "rouge": [1, 2, L], "words": of the first candidate} a case.
"""
import json
import random
import sys

import sacrebleu
from rouge_score import rouge_scorer
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

LATIN = ["Games", "games::arcade", "role::program", "use::editing", "3.5", "1,000", "c++", "it's", "don't", "&amp;", "&quot;x",
         "a-b", "10-20", "(beta)", "e.g.", "naïve", "über", "日本", "K", "İstanbul", "<skipped>", "web,", "web.", "foo/bar",
         "100%", "#tag", "user@host", "x\u00a0y", "…", "-", ".", ",", "[1]", "`q`", "{z}", "~", "^", "_"]
CHINESE = ["美食", "旅行", "。", "，", "Python3", "2.5", "穿搭", "减肥日记", "OOTD", "！", "　", "☀", "“好”", "a-b", "5-6", "①",
           "…", "—", "あい", "#标签", "１２", "㎏"]


class Zh:
    """sacrebleu's zh as a tokenizer of rouge-score."""

    def tokenize(self, text):
        return TokenizerZh()(text.rstrip()).split()


def text(words, most):
    n = random.randint(0, most)
    return "".join(random.choice(words) + random.choice([" ", " ", " ", "", "  "]) for _ in range(n))


def case(kind, words, count, most, agreement):
    candidates, references = [], []
    for _ in range(count):
        references.append(text(words, most))
        candidates.append(references[-1] if random.random() < agreement else text(words, most))
    return measure(kind, candidates, references)


def measure(kind, candidates, references):
    chinese = kind == "chinese"
    bleu = sacrebleu.corpus_bleu(candidates, [references], tokenize="zh" if chinese else "13a")
    names = ["rouge1", "rouge2", "rougeL"]
    scorer = rouge_scorer.RougeScorer(names, use_stemmer=False, **({"tokenizer": Zh()} if chinese else {}))
    scores = [scorer.score(r, c) for r, c in zip(references, candidates)]
    tokenizer = TokenizerZh() if chinese else Tokenizer13a()
    return {"kind": kind, "candidates": candidates, "references": references, "bleu": bleu.score / 100,
            "rouge": [sum(s[name].fmeasure for s in scores) / len(scores) for name in names],
            "words": [tokenizer(c.rstrip()).split() for c in candidates]}


def main():
    random.seed(7)
    cases = []
    for kind, words in (("international", LATIN), ("chinese", CHINESE)):
        for count, most, agreement in ((1, 12, 0), (1, 3, 1), (20, 8, 0.3), (30, 20, 0.05), (5, 2, 0), (40, 4, 0.5)):
            cases.append(case(kind, words, count, most, agreement))
    cases.append(measure("international", ["the cat sat on the mat"], ["the cat sat on the mat"]))
    cases.append(measure("international", ["the the the the the the the"], ["the cat is on the mat"]))
    cases.append(measure("international", ["a b c d e f"], ["a x c y e z"]))
    cases.append(measure("international", ["", "one two-\nthree -\n"], ["something", "one twothree"]))
    json.dump(cases, sys.stdout, ensure_ascii=False, indent=0)
    print()


if __name__ == "__main__":
    main()
