#!/usr/bin/python3
"""notellm plan on the shipped files: what docs/scaling.md shows, and what it refuses.

test_plan.py NOTELLM [unittest options]
"""

import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import unittest

NOTELLM = sys.argv[1]
ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
CLUSTERS = CONFIGS / "clusters"


def run(*command):
    return subprocess.run([NOTELLM, "plan", *map(str, command)], capture_output=True, text=True, check=False, cwd=ROOT,
                          timeout=60)


def cpu_seconds():
    """Of programs that have ended: whatever else the machine does."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Plan(unittest.TestCase):
    def plan(self, config, *options):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "plan.json")
            result = run(CONFIGS / config, *options, "--json", file)
            self.assertEqual(result.returncode, 0, result.stderr)
            return result.stdout, json.loads(file.read_text(encoding="utf-8"))

    def refused(self, code, *command):
        result = run(*command)
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result.stderr

    def test_every_worked_example_has_a_way_that_fits(self):
        for model, parameters in (("llama2_7b.yaml", 6738415616), ("llama2_13b.yaml", 13015864320)):
            for cluster, ranks in (("dgx_a100.yaml", 8), *(("dgx_h100.yaml", n) for n in (8, 64, 256, 1024, 4096))):
                with self.subTest(f"{model} on {ranks} of {cluster}"):
                    begin = cpu_seconds()
                    text, plan = self.plan(model, "--cluster", CLUSTERS / cluster, "--ranks", ranks, "--set",
                                           f"train.pairs_per_step={8 * ranks}")
                    self.assertLess(cpu_seconds() - begin, 2)
                    self.assertIn("predicted", text)
                    dim = 4096 if "7b" in model else 5120
                    # The note head, and 64 more rows of embedding and head for [EMB].
                    self.assertEqual(plan["parameters"], parameters + 128 * dim + 1 + 2 * 64 * dim)
                    best = plan["search"]["choices"]
                    self.assertEqual(len(best), 10)
                    seconds = [choice["predicted"]["seconds_per_step"] for choice in best]
                    self.assertEqual(seconds, sorted(seconds))
                    for choice in best:
                        self.assertEqual(choice["data"] * choice["tensor"], ranks)
                        self.assertLessEqual(choice["memory_bytes"]["most_at_once"],
                                             plan["gpu_memory_bytes"] - plan["reserved_bytes"])
                        self.assertTrue(0 < choice["predicted"]["mfu"] < 1)

    def test_numbers_add_up(self):
        _, plan = self.plan("llama2_7b.yaml", "--cluster", CLUSTERS / "dgx_h100.yaml")
        parameters, plan = plan["parameters"], plan["plan"]
        memory = plan["memory_bytes"]
        state = sum(memory[name] for name in ("master_weights", "moments", "parameters", "gradients"))
        arena = memory["activations"] + max(memory["workspace"], memory["gathered_vectors"])
        self.assertEqual(memory["most_at_once"], state + arena)
        self.assertAlmostEqual(memory["snapshot"], 12 * parameters / 8, delta=1024)
        self.assertAlmostEqual(sum(plan["predicted"]["parts"].values()), plan["predicted"]["seconds_per_step"])
        self.assertEqual({row["group"] for row in plan["bytes_sent"]}, {"world", "data"})

    def test_the_way_that_the_search_found_can_be_asked_for(self):
        cluster = ("--cluster", CLUSTERS / "dgx_h100.yaml", "--ranks", 64)
        _, found = self.plan("llama2_7b.yaml", *cluster)
        best = found["search"]["choices"][0]
        _, asked = self.plan("llama2_7b.yaml", *cluster, "--set", f"parallel.tensor={best['tensor']}",
                             f"parallel.sharding={best['sharding']}", f"parallel.recompute={best['recompute']}",
                             f"train.micro_batch_pairs={best['micro_batch_pairs']}")
        self.assertEqual(asked["plan"]["memory_bytes"], best["memory_bytes"])
        self.assertEqual(asked["plan"]["predicted"], best["predicted"])

    def test_what_cannot_be(self):
        text, plan = self.plan("llama2_7b.yaml", "--cluster", CLUSTERS / "dgx_h100.yaml", "--ranks", 66, "--set",
                               "parallel.tensor=4")
        self.assertIn("66 ranks do not divide into tensor groups of parallel.tensor 4: start 64 or 68 ranks", text)
        self.assertEqual(len(plan["problems"]), 1)
        self.assertNotIn("plan", plan)
        self.assertTrue(plan["search"]["choices"])  # of other ways
        text, plan = self.plan("llama2_7b.yaml", "--ranks", 3, "--set", "parallel.tensor=3", "model.ffn=11009")
        self.assertIn("model.heads 32 does not divide by parallel.tensor 3; nearest that do: 30 and 33", text)
        text, plan = self.plan("llama2_13b.yaml", "--cluster", CLUSTERS / "dgx_h100.yaml", "--ranks", 1)
        self.assertIn("it does not fit", text)
        self.assertEqual((plan["search"]["tried"], plan["search"]["choices"]), (plan["search"]["do_not_fit"], []))
        self.assertIn("take more GPUs", text)

    def test_on_cpus_memory_and_bytes_alone(self):
        text, plan = self.plan("demo.yaml", "--ranks", 4)
        self.assertNotIn("predicted", text)
        self.assertNotIn("search", plan)
        self.assertEqual({row["collective"] for row in plan["plan"]["bytes_sent"]},
                         {"note vectors", "note vector gradients", "loss", "signal", "gradients"})

    def test_cluster_files_are_checked(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "cluster.yaml")
            for text, words in (("gpus_per_nod: 8\n", ("gpus_per_node", "cluster.yaml:1")),
                                ("nvlink: {gbs: 0}\n", ("nvlink.gbs",)), ("nodes: 4097\n", ("nodes", "4096"))):
                file.write_text(text, encoding="utf-8")
                error = self.refused(2, CONFIGS / "llama2_7b.yaml", "--cluster", file)
                for word in words:
                    self.assertIn(word, error)
            self.refused(4, CONFIGS / "llama2_7b.yaml", "--cluster", file.with_name("none.yaml"))
        self.refused(2, CONFIGS / "llama2_7b.yaml", "--ranks", 4097)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
