#!/usr/bin/python3
"""Trainings under mpirun in which one rank fails: all ranks end in time, the last line is the first cause, the exit code
tells causes apart, and what is on disk can be gone on from. The program is failing_notellm (faults.cpp).

test_failures.py NOTELLM MPIEXEC [unittest options]
"""

import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import program
from program import MPIEXEC, NOTELLM

TINY_RUN = pathlib.Path(__file__).resolve().parents[1] / "support" / "tiny_run.sh"
ENVIRONMENT = {**program.ENVIRONMENT, "ASAN_OPTIONS": "detect_leaks=0"}
# Of tests that wait for it; else longer than a save may take on a busy disk.
WATCHDOG, PATIENT_WATCHDOG = 3, 30
# Much more than any of it takes: the watchdog, its words, what mpirun needs; on a busy machine.
BOUND = 60

# (ranks, settings)
PLAIN = (2, [])
TENSOR = (2, ["parallel.tensor=2"])
SHARDED = (2, ["parallel.sharding=parameters"])
MESH = (4, ["parallel.tensor=2", "parallel.sharding=parameters"])
# As between hosts: by messages, gradients and parameters by a thread beside the main one.
MESSAGES = {"NOTELLM_SHARED_MEMORY": "0"}


def processes(folder):
    """Command lines of processes that run in the folder."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder) in os.readlink(entry / "cwd"):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" "))
        except OSError:
            pass  # has ended
    return found


class Failures(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.base = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        for folder in ("shards", "others"):
            (cls.base / folder).mkdir()
            subprocess.run(["bash", "-c", f"source {TINY_RUN} && write_tiny_run 1000000"], cwd=cls.base / folder, check=True)
        with open(cls.base / "others" / "clicks.tsv", "a", encoding="utf-8") as clicks:
            clicks.write("more\tn1 n2 n3 n4 n5\n")
        for folder in ("shards", "others"):
            subprocess.run([NOTELLM, "prepare", "config.yaml"], cwd=cls.base / folder, check=True, capture_output=True,
                           env=ENVIRONMENT)

    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory(dir=self.base)))
        for name in ("config.yaml", "shards"):
            (self.folder / name).symlink_to(self.base / "shards" / name)
        self.run_folder = self.folder / "run"

    def start(self, setting, *options, fault="", of_rank=None, environment=None, watchdog=PATIENT_WATCHDOG):
        """of_rank: further words of single ranks, with mpirun's before them: {1: (["-wdir", …], [])}."""
        ranks, keys = setting
        words = [NOTELLM, "train", "config.yaml", *options, "--set", f"train.run=run",
                 f"train.watchdog_seconds={watchdog}", *keys]
        command = [MPIEXEC, "--oversubscribe", "--bind-to", "none"]
        if of_rank is None:
            command += ["-n", str(ranks), *words]
        else:
            for rank in range(ranks):
                before, after = of_rank.get(rank, ([], []))
                command += [*([":"] if rank else []), "-n", "1", *before, *words, *after]
        self.began = time.monotonic()
        return subprocess.Popen(command, cwd=self.folder, text=True,
                                env={**ENVIRONMENT, **(environment or {}), "NOTELLM_TEST_FAULT": fault}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def finish(self, process, code):
        """The lines of stderr."""
        output, errors = process.communicate(timeout=BOUND)
        self.assertEqual(process.returncode, code, output + errors)
        end = time.monotonic() + 5  # what is killed needs a moment to go
        while processes(self.folder) and time.monotonic() < end:
            time.sleep(0.05)
        self.assertEqual(processes(self.folder), [], errors)
        return [line for line in errors.splitlines() if line]

    def fails(self, setting, code, last, fault="", options=(), **how):
        lines = self.finish(self.start(setting, *options, fault=fault, **how), code)
        self.assertRegex(lines[-1], last, "\n".join(lines))
        return lines

    # The folder goes when rank 0 fails (here: while no other writes there), and not from under it; the next run clears it.
    def test_prepare(self):
        notes, clicks = (self.base / "shards" / name for name in ("notes.jsonl", "clicks.tsv"))
        command = [MPIEXEC, "--oversubscribe", "--bind-to", "none", "-n", "2", NOTELLM, "prepare", "config.yaml", "--set",
                   f"data.notes={notes}", f"data.clicks.files=[{clicks}]", "data.shards=made"]
        both = {"made.partial", "made.lock"}
        for rank, collective, left in ((1, "counts", both), (0, "shards", set()), (1, "counts", both), (-1, "", {"made"})):
            process = subprocess.Popen(command, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                       env={**ENVIRONMENT, "NOTELLM_TEST_FAULT": f"throw {rank} 1 prepare: {collective}"})
            lines = self.finish(process, 0 if rank < 0 else 3)
            if rank >= 0:
                self.assertRegex(lines[-1], rf"^notellm: rank {rank}: error.*: a seeded error$", "\n".join(lines))
            self.assertEqual({path.name for path in self.folder.glob("made*")}, left)

    def test_an_exception(self):
        for setting, rank, collective, group in ((PLAIN, 0, "gradients", "data group 0"),
                                                 (PLAIN, 1, "note vectors", "all ranks"),
                                                 (TENSOR, 1, "norm gradients", "tensor group 0"),
                                                 (SHARDED, 1, "parameters", "data group 0"),
                                                 (MESH, 3, "norm gradients", "tensor group 1")):
            with self.subTest(setting=setting, collective=collective):
                self.fails(setting, 3, rf"^notellm: rank {rank}: error in step 3, last in collective '.*' of .*: a seeded error$",
                           fault=f"throw {rank} 3 {collective}")
                subprocess.run(["rm", "-r", "run"], cwd=self.folder, check=True)

    def test_an_exception_beside_the_main_thread(self):
        for setting, rank, collective in ((PLAIN, 1, "gradients"), (SHARDED, 1, "parameters"), (MESH, 3, "gradients")):
            with self.subTest(setting=setting, collective=collective):
                self.fails(setting, 3, rf"^notellm: rank {rank}: error in step 3, last in collective '.*' of .*: a seeded error$",
                           fault=f"throw {rank} 3 {collective}", environment=MESSAGES)
                subprocess.run(["rm", "-r", "run"], cwd=self.folder, check=True)

    def test_a_killed_rank(self):
        for setting, rank in ((TENSOR, 1), (MESH, 3)):
            with self.subTest(setting=setting):
                lines = self.fails(setting, 137, rf"^(-+|mpirun noticed that process rank {rank} .* exited on signal 9.*)$",
                                   fault=f"kill {rank} 3 norm gradients")
                self.assertRegex("\n".join(lines), rf"notellm: rank 0: rank {rank} was killed, or crashed, (in|after) collective "
                                                   "'.*' of .* in step 3")
                subprocess.run(["rm", "-r", "run"], cwd=self.folder, check=True)

    def test_a_rank_that_does_not_come(self):
        hangs = "rank {} did not come to collective '.*' of .*: in no collective for .* s, after collective '.*' of .* in step 3"
        stopped = "rank {} does not run: no sign of life for .* s"
        for way, setting, rank, said, environment in (
                ("hang", PLAIN, 1, hangs, {}), ("hang", MESH, 2, hangs, {}),
                ("stop", MESH, 3, stopped + ", after collective '.*' of .* in step 3", {}),
                ("hang", PLAIN, 0, hangs, MESSAGES), ("hang", MESH, 2, hangs, MESSAGES), ("stop", TENSOR, 1, stopped, MESSAGES)):
            with self.subTest(way=way, setting=setting, environment=environment):
                lines = self.fails(setting, 6, rf"^notellm: rank \d: {said.format(rank)}\.", fault=f"{way} {rank} 3 gradient norm",
                                   environment=environment, watchdog=WATCHDOG)
                self.assertRegex("\n".join(lines), r"rank \d: collective '.*' of .* has not ended after [3-9]\.\d s in step 3")
                self.assertLess(time.monotonic() - self.began, WATCHDOG + 25)
                subprocess.run(["rm", "-r", "run"], cwd=self.folder, check=True)

    def test_a_rank_that_skips_a_collective(self):
        for setting, group in ((PLAIN, "data group 0"), (SHARDED, "data group 0")):
            with self.subTest(setting=setting):
                self.fails(setting, 6, rf"^notellm: rank 0: error in step 3, .*: collective 'gradients' of {group}, but rank 1 "
                                       "came with collective|^notellm: rank .: ranks wait for each other in step 3: rank . in "
                                       "collective '.*' of .*, rank . in collective '.*' of ",
                           fault="skip 1 3 gradients", watchdog=WATCHDOG)
                subprocess.run(["rm", "-r", "run"], cwd=self.folder, check=True)

    def test_ranks_that_differ(self):
        last = "^notellm: rank 0: error: rank 1 has another {} than rank 0: '.*', not '.*'; give all ranks the same$"
        self.fails(PLAIN, 6, last.format("configuration"), of_rank={1: ([], ["seed=7"])})
        other = self.folder / "other"
        other.mkdir()
        (other / "config.yaml").symlink_to(self.base / "others" / "config.yaml")
        (other / "shards").symlink_to(self.base / "others" / "shards")
        self.fails(PLAIN, 6, last.format("set of shards in shards"), of_rank={1: (["-wdir", str(other)], [])})
        self.finish(self.start(PLAIN, "--resume", "auto", "--set", "train.steps=2"), 0)
        (other / "shards").unlink()
        (other / "shards").symlink_to(self.base / "shards" / "shards")
        self.fails(PLAIN, 6, last.format("checkpoint to go on from"), options=["--resume", "auto"],
                   of_rank={1: (["-wdir", str(other)], [])})

    def test_nan_in_one_ranks_gradients(self):
        for setting in (PLAIN, TENSOR, SHARDED, (2, ["parallel.sharding=optimizer"]), (2, ["parallel.sharding=gradients"]), MESH):
            with self.subTest(setting=setting):
                ranks, keys = setting
                lines = self.fails((ranks, [*keys, "train.checkpoint_every=1", "train.most_skipped_steps=3"]), 7,
                                   r"^notellm: rank 0: error in step 5, .*: 3 steps in a row had NaN or Inf, the last one step 5",
                                   fault=f"nan {ranks - 1} 3 gradients")
                self.assertEqual(sum("skipped by all ranks" in line for line in lines), 3)
                metrics = [json.loads(line) for line in (self.run_folder / "metrics.jsonl").read_text().splitlines()]
                self.assertEqual([m["skipped_steps"] for m in metrics], [0, 0, 1, 2])
                states = [{file.name: file.read_bytes() for file in (self.run_folder / "checkpoints" / name).glob("*.safetensors")}
                          for name in ("step-00000002", "step-00000003", "step-00000004")]
                self.assertTrue(states[0])
                self.assertEqual(states[0], states[1])
                self.assertEqual(states[0], states[2])
                self.assertNotEqual(states[0], {})
                subprocess.run(["rm", "-r", "run"], cwd=self.folder, check=True)

    def test_signals(self):
        for setting in (TENSOR, SHARDED, MESH):
            for number, to in ((signal.SIGUSR1, "rank"), (signal.SIGTERM, "rank"), (signal.SIGUSR1, "mpirun")):
                with self.subTest(setting=setting, number=number, to=to):
                    process = self.start(setting)
                    metrics = self.run_folder / "metrics.jsonl"
                    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size > 500):
                        time.sleep(0.01)
                    with open(self.run_folder / "lock", encoding="utf-8") as lock, self.assertRaises(BlockingIOError):
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                    os.kill(int(children[setting[0] - 1]) if to == "rank" else process.pid, number)
                    lines = self.finish(process, 85)
                    self.assertRegex("\n".join(lines), "a signal asked for the end: saved after step")
                    steps = len(metrics.read_text().splitlines())
                    latest = (self.run_folder / "checkpoints" / "latest").read_text(encoding="utf-8").strip()
                    self.assertEqual(latest, f"step-{steps:08}")
                    subprocess.run(["rm", "-r", "run"], cwd=self.folder, check=True)

    def test_sizes_that_do_not_fit(self):
        self.fails((4, ["parallel.tensor=3"]), 2, "rank 0: error: 4 ranks do not divide into tensor groups of parallel.tensor 3: "
                                                  "start 3 or 6 ranks")
        self.fails((2, ["parallel.tensor=2", "model.heads=3", "model.kv_heads=3", "model.head_dim=8"]), 2, "rank 0: error: .*heads")
        self.fails((4, ["train.pairs_per_step=3"]), 2, "rank 0: error: train.pairs_per_step 3 is fewer than the 4 ranks")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
