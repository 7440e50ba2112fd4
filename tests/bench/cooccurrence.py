"""notellm's co-occurrence stage and one DuckDB query, in turn on the same log, each in its own process.

Usage: cooccurrence.py BENCH_PROGRAM FOLDER [--rounds 2] [--threads 2] [--memory-mb 2000]
Prints seconds, peak memory and the ratio of each round, and checks that both give the same pairs. Needs duckdb and numpy.
"""

import argparse
import json
import os
import subprocess
import sys
import time

# Both start from the log's text and end with the pairs in a file. DuckDB's side is spared what the log does not need: no
# user clicks a note twice in it, so the clicks are not made distinct first. max(…, 10) is faster there than row_number().
QUERY = """
COPY (
  WITH clicks AS MATERIALIZED (
    FROM read_csv('{log}', header=false, columns={{'u': 'INTEGER', 'n': 'INTEGER', 't': 'INTEGER'}})),
  stopped AS (
    SELECT n FROM clicks GROUP BY n HAVING count(*) > 0.01 * (SELECT count(DISTINCT u) FROM clicks)),
  kept AS MATERIALIZED (
    SELECT u, n, t, count(*) OVER (PARTITION BY u) AS c FROM clicks WHERE n NOT IN (FROM stopped)
    QUALIFY c BETWEEN 2 AND 100),
  scores AS (
    SELECT a.n AS a, b.n AS b, sum(1.0::DOUBLE / a.c)::FLOAT AS s
    FROM kept a JOIN kept b ON a.u = b.u AND a.t < b.t GROUP BY a.n, b.n),
  best AS (
    SELECT a, max({{'s': s, 'minus_b': -b}}, 10) AS pairs FROM scores WHERE s BETWEEN 0.01::FLOAT AND 30::FLOAT GROUP BY a)
  SELECT a, -pair.minus_b AS b, pair.s AS s FROM (SELECT a, unnest(pairs) AS pair FROM best) ORDER BY a, s DESC, b
) TO '{pairs}' (FORMAT parquet)
"""


def duckdb_query(log, pairs, threads):
    import duckdb

    database = duckdb.connect(config={"temp_directory": os.path.dirname(pairs)})
    database.execute(f"SET threads={threads}")
    start = time.perf_counter()
    database.execute(QUERY.format(log=log, pairs=pairs))
    print(json.dumps({"seconds": time.perf_counter() - start, "version": duckdb.__version__}))


def timed(command, threads):
    """Runs the command; returns its line of JSON with its peak memory and processor time.

    A child's peak is counted from the fork on, at which it has the memory of this process: all that is large is done in
    processes of its own.
    """
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{command[0]} failed")
    return json.loads(output) | {"peak_mb": usage.ru_maxrss / 1024, "cpu_seconds": usage.ru_utime + usage.ru_stime}


def require_same_pairs(ours_file, duckdb_file):
    """Same pairs in the same order, scores at most one unit in the last place apart.

    Both sum in double, in different orders, and round once to float: sums that differ by rounding (2^-53 a term) may fall
    on both sides of a float's boundary, and where that makes or breaks a tie of two scores the order may differ.
    """
    import duckdb
    import numpy as np

    ours = np.fromfile(ours_file, dtype=[("a", np.int32), ("b", np.int32), ("s", np.float32)])
    theirs = duckdb.sql(f"FROM '{duckdb_file}'").fetchnumpy()
    if len(ours) != len(theirs["a"]):
        sys.exit(f"DIFFERENT: {len(ours)} pairs, DuckDB {len(theirs['a'])}")
    if not np.array_equal(ours["a"], theirs["a"]):
        sys.exit("DIFFERENT: notes A have different numbers of pairs")
    apart = np.abs(ours["s"].view(np.int32).astype(np.int64) - theirs["s"].view(np.int32))
    if apart.max() > 1:
        sys.exit(f"DIFFERENT: the k-th best scores of an A are {apart.max()} units in the last place apart")
    moved = ours["b"] != theirs["b"]
    a_apart = np.unique(ours["a"][apart > 0])
    if not np.isin(ours["a"][moved], a_apart).all():
        sys.exit("DIFFERENT: other pairs where all scores are equal")
    print(f"same {len(ours):,} pairs; {np.count_nonzero(apart):,} scores are one unit in the last place apart, "
          f"{np.count_nonzero(moved):,} pairs stand elsewhere for that reason")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-mb", type=int, default=2000)
    parser.add_argument("--duckdb-query", nargs=2, metavar=("LOG", "PAIRS"), help=argparse.SUPPRESS)
    parser.add_argument("--compare", nargs=2, metavar=("OURS", "DUCKDB"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.duckdb_query:
        return duckdb_query(*options.duckdb_query, options.threads)
    if options.compare:
        return require_same_pairs(*options.compare)
    os.makedirs(options.folder, exist_ok=True)
    log, ours_file, duckdb_file = (os.path.join(options.folder, name) for name in ("log.csv", "pairs.bin", "pairs.parquet"))
    if not os.path.exists(log):
        subprocess.run([options.program, "generate", log + ".part"], check=True)
        os.rename(log + ".part", log)
    ratios = []
    for _ in range(options.rounds):
        ours = timed([options.program, "run", log, ours_file, str(options.memory_mb)], options.threads)
        this = [sys.executable, __file__, options.program, options.folder, "--threads", str(options.threads)]
        theirs = timed(this + ["--duckdb-query", log, duckdb_file], options.threads)
        print("notellm:", json.dumps(ours))
        print("DuckDB: ", json.dumps(theirs), flush=True)
        subprocess.run(this + ["--compare", ours_file, duckdb_file], check=True)
        ratios.append(theirs["seconds"] / ours["seconds"])
        print(f"notellm {ours['seconds']:.2f} s, {ours['peak_mb']:.0f} MB at most; DuckDB {theirs['seconds']:.2f} s, "
              f"{theirs['peak_mb']:.0f} MB; {ratios[-1]:.1f} times as fast "
              f"({theirs['cpu_seconds'] / ours['cpu_seconds']:.1f} times by processor time)", flush=True)
        if ours["peak_mb"] > options.memory_mb:
            sys.exit(f"notellm took {ours['peak_mb']:.0f} MB, more than its bound of {options.memory_mb} MB")
    print(f"least ratio {min(ratios):.1f}")


if __name__ == "__main__":
    main()
