#!/usr/bin/env bash
# Models, tokens, vectors, gradients, training and generated text against transformers, sentence-transformers and torch, live.
#   tests/parity.sh [CHECK …]     all of tests/parity/check_*.py, or those named: gradients logits text training vectors
# Needs a build with tests (BUILD, build/tests) and the reference material (NOTELLM_SHARED, ../shared). VENV: a Python environment
# with the packages below; where there is none it is made from PyPI (about 7 GB).
set -euo pipefail
cd "$(dirname "$0")/.."
build=${BUILD:-build/tests}
venv=${VENV:-build/venv_parity}
[ -x "$venv/bin/python" ] || {
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q torch transformers sentence-transformers sentencepiece protobuf safetensors h5py
}
checks=("$@")
[ ${#checks[@]} -gt 0 ] || for script in tests/parity/check_*.py; do checks+=("$(basename "${script#tests/parity/check_}" .py)"); done
for check in "${checks[@]}"; do
  echo "$check"
  HF_HUB_OFFLINE=1 "$venv/bin/python" "tests/parity/check_$check.py" "$build/notellm" "$build/tests/parity/parity_probe" mpirun
done
echo "all agree"
