#!/usr/bin/python3
"""launch/mpirun.sh: how many ranks, where, bound to what, with which variables and exit code. In place of notellm a script
that says what it was given; in place of ssh one that runs the command here, with none of the environment.

test_mpirun.py [unittest options]
"""

import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time
import unittest

MPIRUN = pathlib.Path(__file__).resolve().parents[2] / "launch" / "mpirun.sh"
CORES = sorted(os.sched_getaffinity(0))
ALL_CORES = ",".join(map(str, CORES))

RANK = """\
#!/bin/bash
cores=$(python3 -c 'import os; print(",".join(map(str, sorted(os.sched_getaffinity(0)))))')
said="host=${FAR:-here} cores=$cores NCCL_DEBUG=$NCCL_DEBUG OMP_PROC_BIND=$OMP_PROC_BIND OTHER=$OTHER arguments=$*"
echo "rank $OMPI_COMM_WORLD_RANK of $OMPI_COMM_WORLD_SIZE $said"
[[ $WAIT ]] && trap '[[ $DEAF ]] || exit 85' USR1 && touch "$WAIT.$OMPI_COMM_WORLD_RANK" && while :; do sleep 0.05; done
exit ${CODE:-0}
"""
SSH = """\
#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -o ]] && shift; shift; done
host=$1
shift
case "$host" in
  far*) exec env -i PATH=/usr/bin:/bin HOME="$HOME" FAR="$host" sh -c "$*" ;;
  bare*) exec env -i PATH=/nowhere /bin/sh -c "$*" ;;
esac
exec /usr/bin/ssh -o BatchMode=yes -o ConnectTimeout=10 "$host" "$@"
"""


class Mpirun(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.script("rank", RANK)
        self.script("ssh", SSH)

    def script(self, name, text):
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def environment(self, **variables):
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith(("OMPI_", "OMP_", "NCCL_", "SLURM_", "CUDA_"))}
        return {**kept, "PATH": f"{self.folder}:{kept['PATH']}", "NOTELLM": str(self.folder / "rank"), **variables}

    def run_it(self, *arguments, code=0, **variables):
        """The ranks' lines, or where it fails its message."""
        done = subprocess.run([MPIRUN, *arguments], capture_output=True, text=True, check=False, timeout=120,
                              cwd=self.folder, env=self.environment(**variables))
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return sorted(done.stdout.splitlines()) if code == 0 else done.stderr

    def test_one_rank_on_one_numa_node_with_all_cores(self):
        self.script("lscpu", "#!/bin/sh\necho '# node'; echo 0; echo 0\n")
        lines = self.run_it("train", "run.yaml", "--resume", "auto")
        self.assertEqual(len(lines), 1)
        self.assertIn("rank 0 of 1 host=here", lines[0])
        self.assertIn(f"cores={ALL_CORES} ", lines[0])
        self.assertTrue(lines[0].endswith("arguments=train run.yaml --resume auto"), lines[0])

    @unittest.skipUnless(CORES == list(range(os.cpu_count())) and len(CORES) % 2 == 0,
                         "the made-up NUMA nodes need an even number of cores, all of them free to use")
    def test_a_rank_a_numa_node_bound_to_it(self):
        self.script("lscpu", "#!/bin/sh\necho '# node'; echo 0; echo 1\n")
        half = len(CORES) // 2
        lines = self.run_it("train", HWLOC_SYNTHETIC=f"numa:2 core:{half} pu:1", HWLOC_THISSYSTEM="1")
        self.assertEqual([line.split("cores=")[1].split()[0] for line in lines],
                         [",".join(map(str, part)) for part in (CORES[:half], CORES[half:])])

    def test_ranks_that_are_asked_for_are_not_bound(self):
        lines = self.run_it("-n", "3", "train")
        self.assertEqual(len(lines), 3)
        for line in lines:
            self.assertIn(f"cores={ALL_CORES} ", line)

    def test_a_rank_a_gpu(self):
        (self.folder / "cuda.yaml").write_text("seed: 1\ndevice: cuda\n", encoding="utf-8")
        (self.folder / "cpu.yaml").write_text("model:\n  device: cuda\n", encoding="utf-8")
        self.script("nvidia-smi", "#!/bin/sh\nfor i in 0 1 2; do echo \"GPU $i: NVIDIA H100 (UUID: GPU-1)\"; done\n")
        self.assertEqual(len(self.run_it("train", "cuda.yaml")), 3)
        self.assertEqual(len(self.run_it("train", "cuda.yaml", CUDA_VISIBLE_DEVICES="0,2")), 2)
        self.assertEqual(len(self.run_it("train", "cpu.yaml", "--set", "seed=2", "device=cuda")), 3)
        self.assertEqual(len(self.run_it("-n", "1", "train", "cuda.yaml")), 1)
        self.script("lscpu", "#!/bin/sh\necho 0\n")
        self.assertEqual(len(self.run_it("train", "cpu.yaml")), 1)
        self.assertEqual(len(self.run_it("train", "cuda.yaml", "--set=device=cpu")), 1)
        self.script("nvidia-smi", "#!/bin/sh\nexit 9\n")
        self.assertIn("no GPU here", self.run_it("train", "cuda.yaml", code=1))

    def test_several_hosts_get_equal_shares_and_the_variables(self):
        lines = self.run_it("-n", "3", "--hosts", "localhost,far.example", "train", NCCL_DEBUG="WARN",
                            OMP_PROC_BIND="false", OTHER="local")
        self.assertEqual([line.split(" cores")[0] for line in lines],
                         ["rank 0 of 3 host=here", "rank 1 of 3 host=here", "rank 2 of 3 host=far.example"])
        self.assertIn("NCCL_DEBUG=WARN OMP_PROC_BIND=false OTHER= ", lines[2])

    def test_a_file_of_hosts(self):
        (self.folder / "hosts").write_text("# two\nlocalhost  # this\n\nfar1\n", encoding="utf-8")
        lines = self.run_it("-n", "2", "--hosts", "hosts", "train")
        self.assertEqual([line.split(" cores")[0] for line in lines],
                         ["rank 0 of 2 host=here", "rank 1 of 2 host=far1"])

    def test_a_host_that_cannot_be_used_is_named(self):
        began = time.monotonic()
        message = self.run_it("--hosts", "localhost,nowhere.invalid,bare1", "train", code=1)
        self.assertLess(time.monotonic() - began, 35)  # the limit of ssh in mpirun.sh, and a little
        self.assertIn("host nowhere.invalid: ssh without a password does not reach it", message)
        self.assertIn("host bare1: it has no Open MPI", message)
        self.assertNotIn("host localhost", message)

    def test_exit_code_comes_through(self):
        self.run_it("-n", "2", "train", CODE="85", code=85)
        self.run_it("-n", "2", "train", CODE="3", code=3)

    def signalled(self, *signals, **variables):
        """The exit code of two ranks that wait, after these signals to the script."""
        ready = pathlib.Path(tempfile.mkdtemp(dir=self.folder)) / "rank"
        with subprocess.Popen([MPIRUN, "-n", "2", "train"], env=self.environment(WAIT=str(ready), **variables),
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                deadline = time.monotonic() + 60
                while not all(pathlib.Path(f"{ready}.{rank}").exists() for rank in (0, 1)):
                    self.assertLess(time.monotonic(), deadline, "the ranks did not start")
                    time.sleep(0.05)
                for number in signals:
                    process.send_signal(number)
                    time.sleep(0.3)
                return process.wait(timeout=60)
            finally:
                process.kill()

    def test_usr1_and_term_ask_the_ranks_to_save(self):
        for number in (signal.SIGUSR1, signal.SIGTERM):
            with self.subTest(number):
                self.assertEqual(self.signalled(number), 85)

    def test_a_second_term_and_int_end_what_does_not_listen(self):
        for signals in ((signal.SIGTERM, signal.SIGTERM), (signal.SIGINT,)):
            with self.subTest(signals):
                self.assertNotIn(self.signalled(*signals, DEAF="1"), (0, 85))

    def test_mistakes(self):
        for arguments, message in (
                ((), "launch/mpirun.sh [-n RANKS]"), (("-n", "0", "train"), "not '0'"), (("-n",), "needs a value"),
                (("--oversubscribe", "train"), "unknown option"), (("--hosts", "a:4", "train"), "'a:4' is no host name"),
                (("--hosts", ",", "train"), "no host"),
                (("-n", "1", "--hosts", f"localhost,{socket.gethostname()}", "train"), "every host needs one")):
            with self.subTest(arguments):
                self.assertIn(message, self.run_it(*arguments, code=2))
        self.assertIn("there is no program /nowhere", self.run_it("train", code=1, NOTELLM="/nowhere"))


if __name__ == "__main__":
    unittest.main()
