#!/usr/bin/env python3
"""Breaks the CUDA kernels, one place at a time, and sees whether the kernel tests fail: mutation testing.

For every mutant of tests/mutation/mutants.py: replaces its text, builds the tests of that file, and runs them on softgpu
until the first sign that kills it: a failed expectation, a finding of softgpu, a crash, or too long a time. All of it
happens in two copies of the working tree under build/mutation, side by side; the tree itself is never changed. Prints a
line a mutant, and at the end a summary.

Exit code 1 when less than 95 % of all mutants were killed, when a survivor has no reason in the list, when one with a
reason was killed after all, or when one could not be applied or compiled.
"""
import argparse
import collections
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import threading
import time

import mutants

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/mutation.md"
RESULTS = ROOT / "build/mutation/results.json"
GENERATED = "<!-- Below this line: written by tests/mutation/run.py --write -->\n"
LEAST_KILLED = 0.95
CHUNK = 6  # mutants of a file that a copy takes one after the other: each saves compiling the restored file

# Signs of failure in a test's output, and which test runs.
TEST = re.compile(r"\[ RUN      \] (\S+)")
FINDING = re.compile(r"softgpu: (\w+) in ")
FAILURE = re.compile(r": Failure$")


@dataclasses.dataclass
class Outcome:
    killed_by: str = ""  # which sign, and in which test; empty: it survived
    problem: str = ""    # why it counts as no mutant
    seconds: float = 0


class Copy:
    """A copy of the working tree, and a build of it for softgpu alone: PTX for sm_80, no machine code."""

    def __init__(self, folder):
        self.tree = folder
        self.build_folder = folder / "build/tests"
        self.seconds = {}  # of each test without a mutant

    def update(self):
        """The tree as it is now. Files that are equal keep their time, so that little is built again."""
        listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                                capture_output=True, check=True).stdout.decode().split("\0")
        names = {name for name in listed if name and (ROOT / name).is_file()}
        for name in names:
            to = self.tree / name
            if not to.exists() or to.read_bytes() != (ROOT / name).read_bytes():
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, to)
                os.utime(to)
        for path in list(self.tree.rglob("*")):
            name = path.relative_to(self.tree)
            if path.is_file() and name.parts[0] != "build" and str(name) not in names:
                path.unlink()

    def configure(self):
        run_or_exit(["cmake", "--preset", "tests", "-DNOTELLM_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=80-virtual"], self.tree)

    def build(self, targets, jobs=1):
        return subprocess.run(["cmake", "--build", "build/tests", "-j", str(jobs), "--target", *targets], cwd=self.tree,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run_test(self, target, most_seconds):
        """What the test's output gives away first, or empty."""
        environment = dict(os.environ, LD_LIBRARY_PATH=str(self.build_folder / "tests/softgpu/lib"), SOFTGPU_THREADS="1",
                           OMP_NUM_THREADS="1", GTEST_COLOR="no")
        process = subprocess.Popen([self.build_folder / "tests/kernels" / target], cwd=self.tree, env=environment,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        late = threading.Event()
        timer = threading.Timer(most_seconds, lambda: (late.set(), process.kill()))
        timer.start()
        test, sign = target, ""
        for line in process.stdout:
            if match := TEST.search(line):
                test = match[1]
            elif match := FINDING.search(line):
                sign = f"softgpu: {match[1]}"
            elif FAILURE.search(line):
                sign = "expectation"
            if sign:
                process.kill()
                break
        process.stdout.close()
        code = process.wait()
        timer.cancel()
        if not sign and late.is_set():
            sign = "timeout"
        if not sign and code != 0:
            sign = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"{sign}, `{test}`" if sign else ""

    def try_mutant(self, mutant):
        source = self.tree / mutant.file
        whole = source.read_text()
        if whole.count(mutant.old) != 1:
            return Outcome(problem=f"its text stands {whole.count(mutant.old)} times in {mutant.file}")
        start = time.monotonic()
        source.write_text(whole.replace(mutant.old, mutant.new))
        targets = mutants.tests_of(mutant)
        built = self.build(targets)
        source.write_text(whole)
        if built.returncode != 0:
            return Outcome(problem="does not compile:\n" + "\n".join(built.stdout.splitlines()[-12:]))
        killed_by = ""
        for target in targets:
            killed_by = killed_by or self.run_test(target, 60 + 5 * self.seconds[target])
        if "unsupported" in killed_by:
            return Outcome(problem=f"only what softgpu does not know kills it: {killed_by}")
        return Outcome(killed_by, "", time.monotonic() - start)


def run_or_exit(command, folder):
    result = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed in {folder}:\n{result.stdout}")


def prepare(copies, targets):
    """Builds every copy without a mutant and runs its tests, which have to pass."""
    for copy in copies:
        copy.update()
    for copy in copies:  # one after the other: the compiler cache serves all but the first
        print(f"build without a mutant: {copy.tree}", flush=True)
        copy.configure()
        built = copy.build(targets, os.cpu_count())
        if built.returncode != 0:
            sys.exit(f"the build without a mutant failed:\n{built.stdout[-4000:]}")

    def run_tests(copy):
        for target in targets:
            start = time.monotonic()
            sign = copy.run_test(target, 1200)
            if sign:
                sys.exit(f"without a mutant: {sign}. First make the tests pass.")
            copy.seconds[target] = time.monotonic() - start

    with concurrent.futures.ThreadPoolExecutor(len(copies)) as pool:
        list(pool.map(run_tests, copies))
    print("tests without a mutant pass: " + ", ".join(f"{t} {s:.0f} s" for t, s in copies[0].seconds.items()), flush=True)


class Results:
    """What is known of each mutant, kept in a file so that --left can go on from there."""

    def __init__(self, known):
        self.outcomes = {}
        if known and RESULTS.exists():
            kept = {tuple(entry["mutant"]): Outcome(**entry["outcome"]) for entry in json.loads(RESULTS.read_text())}
            self.outcomes = {m: kept[self.key(m)] for m in mutants.ALL if self.key(m) in kept}

    @staticmethod
    def key(mutant):
        return mutant.file, mutant.name, mutant.old, mutant.new

    def add(self, mutant, outcome):
        self.outcomes[mutant] = outcome
        RESULTS.write_text(json.dumps([{"mutant": self.key(m), "outcome": dataclasses.asdict(o)}
                                       for m, o in self.outcomes.items()], indent=1))


class Progress:
    def __init__(self, total, results):
        self.start, self.total, self.done, self.lock = time.monotonic(), total, 0, threading.Lock()
        self.results = results

    def add(self, mutant, outcome):
        with self.lock:
            self.results.add(mutant, outcome)
            self.done += 1
            elapsed = time.monotonic() - self.start
            left = elapsed / self.done * (self.total - self.done)
            what = outcome.problem or outcome.killed_by or "SURVIVED" + (" (equivalent)" if mutant.equivalent else "")
            print(f"[{self.done}/{self.total}, {left / 60:.0f} min left] {mutant.file}: {mutant.name}: {what} "
                  f"({outcome.seconds:.0f} s)", flush=True)


def try_all(copies, chosen, results):
    by_file = collections.defaultdict(list)
    for mutant in chosen:
        by_file[mutant.file].append(mutant)
    chunks = [group[i:i + CHUNK] for group in by_file.values() for i in range(0, len(group), CHUNK)]
    work = queue.Queue()
    for chunk in sorted(chunks, key=lambda c: -len(c) * sum(copies[0].seconds[t] for t in mutants.tests_of(c[0]))):
        work.put(chunk)
    progress, stopped = Progress(len(chosen), results), threading.Event()

    def take_work(copy):
        while True:
            try:
                chunk = work.get_nowait()
            except queue.Empty:
                return
            for mutant in chunk:
                outcome = copy.try_mutant(mutant)
                if stopped.is_set():  # by Ctrl-C, which the build and the test got too: their outcome says nothing
                    return
                progress.add(mutant, outcome)

    with concurrent.futures.ThreadPoolExecutor(len(copies)) as pool:
        try:
            list(pool.map(take_work, copies))
        finally:
            stopped.set()


def summary(outcomes):
    """Lines of Markdown, and whether all is as it should be."""
    killed = [m for m, o in outcomes.items() if o.killed_by]
    broken = [m for m, o in outcomes.items() if o.problem]
    survivors = [m for m, o in outcomes.items() if not o.problem and not o.killed_by]
    valid = len(killed) + len(survivors)
    unexplained = [m for m in survivors if not m.equivalent]
    contradicted = [m for m in killed if m.equivalent]
    lines = [f"{valid} mutants: {len(killed)} killed ({100 * len(killed) / max(valid, 1):.1f} %), {len(survivors)} survived, "
             f"{len(unexplained)} of them without a reason."]
    lines += [f"No mutant: {m.file}: {m.name}: {outcomes[m].problem}" for m in broken]
    lines += [f"Said to be equivalent, but killed: {m.file}: {m.name}" for m in contradicted]
    enough = len(outcomes) < len(mutants.ALL) or len(killed) >= LEAST_KILLED * valid
    return lines, enough and not (broken or unexplained or contradicted)


def table(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def page(outcomes, lines):
    """The generated part of docs/mutation.md."""
    files = sorted({m.file for m in outcomes})
    counts = [("file", "mutants", "killed", "survived")]
    for file in files:
        of_file = [o for m, o in outcomes.items() if m.file == file]
        killed = sum(bool(o.killed_by) for o in of_file)
        counts.append((f"`{file}`", str(len(of_file)), str(killed), str(len(of_file) - killed)))
    text = ["", *lines, "", *table(counts), ""]
    survivors = [m for m in outcomes if not outcomes[m].killed_by]
    if survivors:
        text += ["## Survivors", ""]
        text += table([("file", "mutant", "why nothing can differ")]
                      + [(f"`{m.file}`", m.name, m.equivalent or "no reason known") for m in survivors]) + [""]
    text += ["## All", ""]
    for file in files:
        rows = [("mutant", "kind", "killed by")]
        rows += [(m.name, m.kind, outcomes[m].killed_by or "survives: see above") for m in outcomes if m.file == file]
        text += [f"### `{file}`", "", *table(rows), ""]
    return "\n".join(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TEXT", default="", help="only mutants whose name contains TEXT")
    parser.add_argument("--file", metavar="TEXT", default="", help="only mutants of files whose name contains TEXT")
    parser.add_argument("--left", action="store_true", help="only mutants that no run has killed yet, new ones among them")
    parser.add_argument("--list", action="store_true", help="print the mutants, run nothing")
    parser.add_argument("--write", action="store_true", help="write the tables of docs/mutation.md; all must have been tried")
    options = parser.parse_args()
    named = [m for m in mutants.ALL if options.only in m.name and options.file in m.file]
    results = Results(known=options.left or len(named) < len(mutants.ALL))
    chosen = named  # what is tried; the summary is of all named
    if options.left:
        chosen = [m for m in named if m not in results.outcomes or not results.outcomes[m].killed_by]
    if not chosen:
        sys.exit("no mutant is left of this name and file; --list shows all")
    if options.list:
        for m in chosen:
            print(f"{m.file}: {m.name} ({m.kind})")
        return 0
    copies = [Copy(ROOT / f"build/mutation/{i}") for i in range(max(1, min(2, os.cpu_count(), len(chosen))))]
    start = time.monotonic()
    prepare(copies, sorted({target for m in chosen for target in mutants.tests_of(m)}))
    try_all(copies, chosen, results)
    lines, good = summary({m: results.outcomes[m] for m in named})
    print(f"\n{(time.monotonic() - start) / 60:.0f} minutes. " + "\n".join(lines))
    for m in chosen:
        if not results.outcomes[m].killed_by and not results.outcomes[m].problem:
            print(f"Survived: {m.file}: {m.name}: {m.equivalent or 'NO REASON'}")
    if options.write:
        missing = [m for m in mutants.ALL if m not in results.outcomes]
        if missing:
            sys.exit(f"docs/mutation.md is left as it was: {len(missing)} mutants were never tried; run --left --write")
        outcomes = {m: results.outcomes[m] for m in mutants.ALL}
        PAGE.write_text(PAGE.read_text().split(GENERATED)[0] + GENERATED + page(outcomes, summary(outcomes)[0]))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
