#!/usr/bin/env bash
# The training step of configs/bench_step.yaml by notellm and by transformers, on the same machine in the same run.
#   tests/bench/step_transformers.sh [key=value …]      overrides of the configuration, such as data.notes=…
# Needs build/release/notellm and PyPI (torch and transformers, about 7 GB, into build/venv_transformers).
set -euo pipefail
cd "$(dirname "$0")/../.."
notellm=${NOTELLM:-build/release/notellm}
venv=${VENV:-build/venv_transformers}
[ -x "$venv/bin/python" ] || { python3 -m venv "$venv" && "$venv/bin/pip" install -q torch transformers h5py; }
overrides=("$@")
set_options() { [ ${#overrides[@]} -eq 0 ] || printf '%s\n' --set "${overrides[@]}"; }
mapfile -t options < <(set_options)
"$notellm" prepare configs/bench_step.yaml "${options[@]}"
shards=data/bench_step/shards
for round in 1 2; do
  echo "round $round"
  "$notellm" bench step configs/bench_step.yaml "${options[@]}"
  "$notellm" bench step configs/bench_step.yaml --set precision=fp32 "${overrides[@]}"
  "$venv/bin/python" tests/bench/step_transformers.py "$shards"
done
