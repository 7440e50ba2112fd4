#!/usr/bin/env python3
"""Is the recall of one model above that of another, or is it the choice of test notes? Recall@k of two files of vectors on
the test pairs of a folder of shards, all and cold ones, and the difference with a standard error and a 95 % interval.

  notellm embed run_a.yaml --pool --output a.h5
  notellm embed run_b.yaml --pool --output b.h5
  compare_recall.py SHARDS a.h5 b.h5

The interval is of the bootstrap over notes (Snijders and Borgatti, Connections 22, 1999): each note gets a weight, a pair the
product of its two notes' weights, so that pairs that share a note vary together. It covers the choice of test notes, not that
of the training's seed. Needs numpy and h5py.
"""
import argparse
import pathlib

import h5py
import numpy

CUTOFFS = (10, 100, 1000)


def read_shards(folder):
    """Clicks of each note of the pool; the test pairs, as rows of the pool."""
    clicks, pooled = [], []
    for path in sorted(folder.glob("notes-*.h5")):
        with h5py.File(path) as file:
            clicks.append(file["clicks"][:])
            pooled.append(file["in_pool"][:] != 0)
    clicks, pooled = numpy.concatenate(clicks), numpy.concatenate(pooled)
    row_of = numpy.where(pooled, numpy.cumsum(pooled) - 1, -1)
    pairs = []
    for path in sorted(folder.glob("pairs-*.h5")):
        with h5py.File(path) as file:
            pairs.append(numpy.stack([file["test/query"][:], file["test/target"][:]], axis=1))
    return clicks[pooled], row_of[numpy.concatenate(pairs)]


def read_vectors(path, notes):
    with h5py.File(path) as file:
        vectors = file["vectors"][:]
    if len(vectors) != notes:
        raise SystemExit(f"{path}: {len(vectors)} vectors, the pool has {notes} notes: write them by `notellm embed --pool`")
    return vectors


def ranks(vectors, pairs):
    """1 + notes that are nearer to the query than the target, without the query."""
    result = numpy.empty(len(pairs), dtype=numpy.int64)
    for query in numpy.unique(pairs[:, 0]):
        scores = vectors @ vectors[query]
        scores[query] = -numpy.inf
        mine = numpy.nonzero(pairs[:, 0] == query)[0]
        targets = scores[pairs[mine, 1]]
        result[mine] = 1 + (scores[None, :] > targets[:, None]).sum(axis=1)
    return result


def differences(found_a, found_b, pairs, notes, rounds, random):
    """Of Recall, b - a, over bootstrapped notes."""
    values = []
    for _ in range(rounds):
        weight = random.poisson(1.0, notes)
        of_pair = weight[pairs[:, 0]] * weight[pairs[:, 1]]
        values.append((of_pair * (found_b.astype(float) - found_a)).sum() / of_pair.sum())
    return numpy.array(values)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=pathlib.Path)
    parser.add_argument("a", type=pathlib.Path)
    parser.add_argument("b", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=1000)
    options = parser.parse_args()
    clicks, pairs = read_shards(options.shards)
    ranks_a, ranks_b = (ranks(read_vectors(path, len(clicks)), pairs) for path in (options.a, options.b))
    random = numpy.random.default_rng(1)
    print(f"{'':18}{'pairs':>8}{'a':>8}{'b':>8}{'b - a':>8}{'error':>8}{'95 %':>16}")
    for name, mask in (("all", numpy.ones(len(pairs), bool)), ("cold", (clicks[pairs] == 0).any(axis=1))):
        for k in CUTOFFS:
            found_a, found_b = ranks_a[mask] <= k, ranks_b[mask] <= k
            values = 100 * differences(found_a, found_b, pairs[mask], len(clicks), options.rounds, random)
            low, high = numpy.percentile(values, [2.5, 97.5])
            a, b = 100 * found_a.mean(), 100 * found_b.mean()
            print(f"{name + f' Recall@{k}':18}{mask.sum():8}{a:8.1f}{b:8.1f}{b - a:+8.1f}{values.std():8.2f}"
                  f"{f'{low:+.1f} to {high:+.1f}':>16}")


if __name__ == "__main__":
    main()
