#!/usr/bin/python3
"""`notellm bench` on one device: every op runs, and the result file has what it should.

test_bench.py NOTELLM cpu|cuda [unittest options]
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

NOTELLM, DEVICE = sys.argv[1:3]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
CUDNN = DEVICE == "cuda" and os.environ.get("SOFTGPU_ARCH") == "90"  # cuDNN's attention needs sm_90

# 420 tokens of the tokenizer and [EMB] are padded to 448 rows.
CONFIG = """\
data:
  shards: {folder}/no_shards
  tokenizer: {{vocabulary: 420}}
  prompt: {{title_tokens: 4, content_tokens: 4}}
model: {{dim: 32, layers: 2, heads: 4, kv_heads: 2, ffn: 64, note_dim: 16, context: 200}}
train: {{pairs_per_step: 2}}
"""
DIM, KV, FFN, NOTE_DIM, VOCABULARY, ROWS = 32, 32, 64, 16, 448, 8

MEMORY_OPS = {
    # name: bytes that must move in bf16, by hand
    "rms_norm, residual added": 4 * 2 * ROWS * DIM,
    "rms_norm_apply": 2 * 2 * ROWS * DIM,
    "rms_norm_backward": 4 * 2 * ROWS * DIM,
    "rope": 2 * 2 * ROWS * DIM,
    "swiglu": 3 * 2 * ROWS * FFN,
    "swiglu_backward": 6 * 2 * ROWS * FFN,
    "embedding": None,  # as many rows of the table as the random tokens are distinct
    "scatter_add_rows, to the table": None,
    "gather_rows": 2 * 2 * ROWS * DIM,
    "scatter_add_rows, by place": 3 * 2 * ROWS * DIM,
    "convert, f32 to bf16": (4 + 2) * ROWS * DIM,
    "l2_normalize": 2 * 4 * ROWS * NOTE_DIM,
    "l2_normalize_backward": 3 * 4 * ROWS * NOTE_DIM,
    "cross_entropy": (4 + 2) * ROWS * VOCABULARY,
    "decode_attention": 2 * 128 * KV + 2 * 2 * DIM,  # one sequence of 128 tokens
    "sum_of_squares": 4 * 8192 * ROWS,
    "adamw": (7 * 4 + 2) * 8192 * ROWS,
}
# One note of 96 tokens after 32 of a prefix, 32 values in all heads.
PAIRS = 32 * 33 / 2 + 96 * 32 + 96 * 97 / 2
PRODUCT_OPS = {
    "attention": 2 * 2 * PAIRS * 32,
    "attention_backward": 5 * 2 * PAIRS * 32,
    "infonce": 2 * (2 * ROWS) * (8 * ROWS) * NOTE_DIM,
    "infonce_backward": 3 * 2 * (2 * ROWS) * (8 * ROWS) * NOTE_DIM,
}
if CUDNN:  # the prefix is in the note
    PRODUCT_OPS |= {"attention by cuDNN": 2 * 2 * 128 * 129 / 2 * 32,
                    "attention_backward by cuDNN": 5 * 2 * 128 * 129 / 2 * 32}
MATRICES = {"q": DIM * DIM, "k, v": DIM * KV, "o": DIM * DIM, "gate, up": DIM * 2 * FFN, "down": FFN * DIM,
            "LM head": DIM * VOCABULARY, "note vectors": DIM * NOTE_DIM}


class Bench(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        cls.config = cls.folder / "run.yaml"
        cls.config.write_text(CONFIG.format(folder=folder.name), encoding="utf-8")

    @staticmethod
    def run_bench(*command):
        return subprocess.run([NOTELLM, "bench", *map(str, command)], capture_output=True, text=True, check=False,
                              env=ENVIRONMENT, timeout=300)

    def bench(self, command, *options, overrides=()):
        """The result file; what was printed has the name of every row."""
        file = self.folder / f"{command}.json"
        result = self.run_bench(command, self.config, "--json", file, *options, "--set", f"device={DEVICE}",
                                "precision=bf16", *overrides)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)  # softgpu's findings: 99
        found = json.loads(file.read_text(encoding="utf-8"))
        self.assertEqual((found["command"], found["device"], found["precision"], found["ranks"]),
                         (f"bench {command}", DEVICE, "bf16", 1))
        self.assertTrue(found["program"].startswith("notellm "))
        self.assertRegex(found["commit"], "^([0-9a-f]{12,}(-dirty)?|unknown)$")
        self.assertRegex(found["time"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
        self.assertTrue(found["device_name"])
        self.assertEqual(found["model"]["vocabulary"], VOCABULARY)
        self.assertEqual(found["model"]["head_dim"], DIM // 4)
        for row in found["rows"]:
            self.assertIn(row["name"].split(",")[0], result.stdout)
            for key, value in row.items():
                if isinstance(value, str):
                    continue
                self.assertTrue(math.isfinite(value) and value > 0, f"{row['name']}: {key} {value}")
        return found

    def check_products(self, rows, flops, large_product):
        for row in rows:
            with self.subTest(row["name"]):
                self.assertEqual(row["flops"], flops[row["name"]])
                self.assertAlmostEqual(row["flops_per_second"] * row["seconds"] / row["flops"], 1)
                self.assertAlmostEqual(row["share_of_large_product"] * large_product / row["flops_per_second"], 1)

    def test_kernels(self):
        overrides = ["attention=cudnn", "train.share_prefix=false"] if CUDNN else []
        found = self.bench("kernels", "--rows", ROWS, overrides=overrides)
        self.assertEqual(found["tile_rows"], ROWS)
        self.assertGreater(found["copy_bytes_per_second"], 0)
        memory = [row for row in found["rows"] if row["kind"] == "memory"]
        self.assertEqual([row["name"] for row in memory], list(MEMORY_OPS))
        for row in memory:
            with self.subTest(row["name"]):
                if MEMORY_OPS[row["name"]]:
                    self.assertEqual(row["bytes"], MEMORY_OPS[row["name"]])
                self.assertAlmostEqual(row["bytes_per_second"] * row["seconds"] / row["bytes"], 1)
                self.assertAlmostEqual(row["times_copy"] * row["copy_seconds"] / row["seconds"], 1)
        products = {row["name"]: row for row in found["rows"] if row["kind"] == "product"}
        self.assertEqual(set(products), set(PRODUCT_OPS))
        self.assertEqual(len(found["rows"]), len(MEMORY_OPS) + len(PRODUCT_OPS))
        for dtype, of_dtype in (("bf16", False), ("f32", True)):
            self.check_products([row for name, row in products.items() if ("infonce" in name) == of_dtype], PRODUCT_OPS,
                                found["large_product"][dtype]["flops_per_second"])

    def test_gemm(self):
        found = self.bench("gemm", "--rows", ROWS)
        flops = {f"{name}, {way}": 2 * ROWS * size for name, size in MATRICES.items()
                 for way in ("forward", "to input", "to weights")}
        self.assertEqual([row["name"] for row in found["rows"]], list(flops))
        self.check_products(found["rows"], flops, found["large_product"]["bf16"]["flops_per_second"])

    def test_step(self):
        found = self.bench("step", "--synthetic", "--steps", "2", "--warmup", "1")
        step, rows = found["step"], {row["name"]: row for row in found["rows"]}
        self.assertEqual((step["notes_per_step"], step["steps"], step["micro_batches"]), (4, 2, 1))
        self.assertLess(step["model_flops_per_step"], step["flops_per_step"])
        self.assertEqual({row["kind"] for row in found["rows"]}, {"step", "part"})
        self.assertEqual(rows["step"]["flops"], step["flops_per_step"])
        self.assertAlmostEqual(rows["step"]["seconds"] * step["notes_per_second"], 4)
        parts = [row for row in found["rows"] if row["kind"] == "part"]
        self.assertLessEqual(sum(row["share_of_step"] for row in parts), 1 + 1e-9)
        self.assertIn("backward", rows)
        if found["large_product"]["peak_flops_per_second"] is None:
            self.assertIsNone(step["mfu"])
        else:
            self.assertAlmostEqual(step["mfu"] * rows["step"]["seconds"] * found["large_product"]["peak_flops_per_second"]
                                   / step["model_flops_per_step"], 1)

    def test_a_result_that_cannot_be_written_is_said_before_anything_else(self):
        for command in ("step", "gemm", "kernels"):
            for file, why in ((self.folder / "none" / "x.json", "no folder"), (self.folder, "is a folder")):
                with self.subTest(command, file=file):
                    result = self.run_bench(command, self.folder / "no_config.yaml", "--json", file)
                    self.assertEqual(result.returncode, 4, result.stderr)
                    self.assertIn(why, result.stderr)
                    self.assertIn(str(file), result.stderr)
                    self.assertEqual(result.stdout, "")

    def test_command_lines_that_are_refused(self):
        for options in (("kernels", self.config, "--rows", "0"), ("step", self.config, "--rows", "8"),
                        ("gemm", self.config, "--json")):
            self.assertEqual(self.run_bench(*options).returncode, 2)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
