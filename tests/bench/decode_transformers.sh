#!/usr/bin/env bash
# Greedy decoding by notellm and by transformers, of a model of the same shape, on the same machine in turns: one note, 32 notes.
# Needs bench_decode (cmake --preset tests) and PyPI (torch and transformers, about 7 GB, into build/venv_transformers).
set -euo pipefail
cd "$(dirname "$0")/../.."
bench=${BENCH:-build/tests/tests/bench/bench_decode}
venv=${VENV:-build/venv_transformers}
[ -x "$venv/bin/python" ] || { python3 -m venv "$venv" && "$venv/bin/pip" install -q torch transformers h5py; }
for round in 1 2; do
  echo "round $round"
  "$bench"
  "$venv/bin/python" tests/bench/decode_transformers.py
done
