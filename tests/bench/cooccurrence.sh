#!/bin/sh
# Co-occurrence of 10.1 million clicks on 1 million notes: notellm against one DuckDB query, both on 2 threads, with the
# result compared. Takes about 2 minutes and 1 GB of disk; DuckDB is installed by pip into build/duckdb.
# Usage: tests/bench/cooccurrence.sh [--rounds N] [--threads N] [--memory-mb N]
# BUILD names another build folder than build/tests.
set -eu
cd "$(dirname "$0")/../.."
build=${BUILD:-build/tests}
if [ -z "${BUILD:-}" ]; then
  cmake --preset tests >/dev/null
fi
cmake --build "$build" --target bench_cooccurrence
venv=build/duckdb
if ! "$venv/bin/python" -c 'import duckdb, numpy' 2>/dev/null; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet duckdb==2.0.0 numpy
fi
exec "$venv/bin/python" tests/bench/cooccurrence.py "$build/tests/bench/bench_cooccurrence" build/cooccurrence_bench "$@"
