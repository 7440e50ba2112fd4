#!/usr/bin/env bash
# Compares tokens with Hugging Face's `tokenizers` library, live, on 100,000 real texts and 20,000 synthetic ones, for
# tokenizers of each style of tests/golden/tokenizers that it trains here; and the speed of both on two threads. Ends
# with an error where a token differs, or where the library is faster. About ten minutes on two cores.
#
#   tests/parity/tokens.sh PYTHON NOTES.jsonl.xz [--sentencepiece FILE.model …] [OPTION …]
#
# PYTHON: an interpreter with tokenizers, and transformers and sentencepiece for --sentencepiece. NOTES: a notes.jsonl,
# packed by xz. Options: tests/parity/tokens.py --help.
set -euo pipefail

if (($# < 2)) || [[ $1 == -* ]]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0"
  exit 2
fi
python="$1" notes="$2"
shift 2
root="$(dirname "$(readlink -f "$0")")/../.."
cmake --build "$root/build/tests" --target encode_texts >/dev/null
exec "$python" "$root/tests/parity/tokens.py" --program "$root/build/tests/tests/parity/encode_texts" --notes "$notes" "$@"
