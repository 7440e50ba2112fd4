#!/usr/bin/python3
"""The program as users call it: help, exit codes, and the whole way on sixty made-up notes.

test_commands.py NOTELLM MPIEXEC [unittest options]
"""

import json
import math
import pathlib
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

from program import ENVIRONMENT, MPIEXEC, NOTELLM, run

COMMANDS = ["prepare", "import", "train", "evaluate", "embed", "neighbors", "generate", "export", "bench step", "bench gemm",
            "bench kernels", "plan", "inspect", "doctor"]

TOPICS = {
    "music": "guitar piano violin concert melody rhythm chord singer album studio",
    "garden": "flower seed soil watering rose tulip hedge spade compost lawn",
    "space": "rocket planet orbit moon comet telescope galaxy launch crater probe",
}

CONFIG = """\
seed: 3
data:
  notes: {folder}/notes.jsonl
  shards: {folder}/shards
  clicks: {{files: [{folder}/clicks.tsv], heldout_share: 0.3, stop_share: 1}}
  cooccurrence: {{lower: 0, upper: 1000}}
  tokenizer: {{vocabulary: 420}}
model: {{dim: 32, layers: 2, heads: 4, kv_heads: 4, ffn: 64, note_dim: 16, context: 400}}
optimizer: {{learning_rate: 0.003, warmup_steps: 1}}
train: {{run: {folder}/run, steps: 5, pairs_per_step: 8, checkpoint_every: 5, log_every: 1}}
"""


def write_notes_and_clicks(folder):
    """Twenty notes a topic; each user stays within a topic. Note 59 is never clicked."""
    random.seed(1)
    notes, clicks = [], []
    for topic, words in TOPICS.items():
        words = words.split()
        for _ in range(20):
            text = " ".join(random.choices(words, k=12))
            notes.append({"id": f"n{len(notes)}", "title": f"{topic}: {text[:20]}", "content": text, "category": topic,
                          "hashtags": random.sample(words, 2)})
    for user in range(120):
        first = 20 * (user % 3)
        clicks.append(f"u{user}\t" + " ".join(f"n{note}" for note in random.sample(range(first, first + 19), 4)))
    with open(folder / "notes.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(note) + "\n" for note in notes)
    (folder / "clicks.tsv").write_text("\n".join(clicks) + "\n", encoding="utf-8")


def read_npy(path):
    data = path.read_bytes()
    assert data[:8] == b"\x93NUMPY\x01\x00"
    length = struct.unpack("<H", data[8:10])[0]
    assert (10 + length) % 64 == 0
    header = data[10:10 + length].decode("latin1")
    rows, cols = map(int, re.fullmatch(r"\{'descr': '<f4', 'fortran_order': False, 'shape': \((\d+), (\d+)\), \} *\n",
                                       header).groups())
    values = struct.unpack(f"<{rows * cols}f", data[10 + length:])
    return [values[i * cols:(i + 1) * cols] for i in range(rows)], data[10 + length:]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


class CommandLine(unittest.TestCase):
    def expect(self, command, code, *texts):
        result = run(command)
        self.assertEqual(result.returncode, code, result.stderr + result.stdout)
        for text in texts:
            self.assertIn(text, result.stdout if code == 0 else result.stderr)

    def test_help(self):
        self.expect(["--help"], 0, "Exit codes:", *{command.split()[0] for command in COMMANDS})
        for command in COMMANDS:
            with self.subTest(command):
                self.expect([*command.split(), "--help"], 0, "--help")
        for command, option, default in (("neighbors", "--count", "10"), ("neighbors", "--index", "flat"),
                                         ("bench step", "--warmup", "2"), ("doctor", "--threads", "0")):
            self.assertRegex(run([*command.split(), "--help"]).stdout, rf"{option} .*[=\[]{default}\b")

    def test_wrong_command_lines(self):
        self.expect([], 2)
        for words, said in ((["trian", "x.yaml"], "unknown command 'trian'; did you mean 'train'?"),
                            (["neighbours", "x.yaml"], "unknown command 'neighbours'; did you mean 'neighbors'?"),
                            (["bench", "stpe", "x.yaml"], "unknown command 'bench stpe'; did you mean 'bench step'?"),
                            (["frobnicate"], "unknown command 'frobnicate'; known are prepare, import, train, "),
                            (["--frobnicate"], "unknown option '--frobnicate'")):
            self.expect(words, 2, said, "--help")
        for command in COMMANDS:
            with self.subTest(command):
                self.expect([*command.split(), *([] if command == "doctor" else ["x"]), "--no-such-option"], 2)
        self.expect(["doctor", "--no-such-option"], 2, "--no-such-option")
        self.expect(["doctor", "--set", "seed=x"], 2, "--set seed=x: there is no configuration")
        self.expect(["bench"], 2)
        self.expect(["neighbors", "x.yaml", "--index", "tree"], 2, "tree")
        self.expect(["neighbors", "x.yaml", "--count", "0"], 2, "--count")
        self.expect(["embed", "x.yaml", "--output", "vectors.txt"], 2, "vectors.txt", ".npy")
        for size in ("-5", "-5GB", "0", "0KB", "1.5GB", "99EB", "GBs", "x"):
            self.expect(["export", "x", "y", "--shard-size", size], 2, "--shard-size")

    def test_configuration(self):
        with tempfile.TemporaryDirectory() as name:
            config = pathlib.Path(name, "run.yaml")
            config.write_text("train: {stepz: 3}\n", encoding="utf-8")
            for command in ("prepare", "train", "evaluate", "neighbors", "generate", "bench step", "plan"):
                with self.subTest(command):
                    self.expect([*command.split(), str(config)], 2, "stepz", "steps", str(config))
            self.expect(["train", str(pathlib.Path(name, "none.yaml"))], 4, "none.yaml")
            config.write_text(f"data: {{shards: {name}/none}}\ntrain: {{run: {name}/none}}\n", encoding="utf-8")
            for command in ("evaluate", "neighbors", "generate", "bench step"):
                with self.subTest(command):
                    self.expect([*command.split(), str(config)], 4, f"{name}/none")

    def test_a_gpu_that_is_not_there(self):
        # No CUDA in the build, no driver, or, where there is a GPU, none that may be used.
        with tempfile.TemporaryDirectory() as folder:
            config = pathlib.Path(folder, "run.yaml")
            config.write_text("device: cuda\n")
            for command in ["train", "evaluate", "generate", "bench step", "bench gemm", "bench kernels"]:
                result = subprocess.run([NOTELLM, *command.split(), str(config)], capture_output=True, text=True,
                                        check=False, env={**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}, timeout=60)
                self.assertEqual(result.returncode, 8, result.stderr)
                self.assertRegex(result.stderr, "CUDA|driver|device")

    def test_inspect_refuses_what_it_does_not_know(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            self.expect(["inspect", f"{name}/missing.h5"], 4, "missing.h5")
            self.expect(["inspect", name], 3, name)
            for file, content, code in (("a.h5", b"not HDF5 at all", 3), ("a.model", b"\x00\x01", 3),
                                        ("a.txt", b"text", 3), ("a.safetensors", b"\xff" * 20, 5),
                                        ("b.safetensors", struct.pack("<Q", 40) + b'{"x": 1}', 5)):
                with self.subTest(file):
                    (folder / file).write_bytes(content)
                    self.expect(["inspect", str(folder / file)], code, file)

    def test_doctor(self):
        for ranks in (1, 2):
            result = run(["doctor"], ranks)
            self.assertEqual(result.returncode, 0, result.stderr)
            for text in ("oneDNN", "SentencePiece", "GFLOP/s", "instruction set"):
                self.assertIn(text, result.stdout)
            self.assertEqual("messages between two ranks" in result.stdout, ranks == 2)
            self.assertEqual("shared memory (ob1, vader)" in result.stdout, ranks == 2)

    def test_doctor_finds_what_differs(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "a.yaml").write_text("seed: 1\n", encoding="utf-8")
            (folder / "b.yaml").write_text("seed: 2\n", encoding="utf-8")
            doctor = [NOTELLM, "doctor"]
            for second, said in (("a.yaml", "all ranks alike +versions, instruction set, configuration\n"),
                                 ("b.yaml", "warning: rank 1 has another configuration than rank 0: 'seed: 2', not 'seed: 1'")):
                command = [MPIEXEC, "--oversubscribe", "--bind-to", "none", "--mca", "btl", "tcp,self",
                           "--mca", "btl_tcp_if_include", "lo", "-n", "1", *doctor,
                           folder / "a.yaml", ":", "-n", "1", *doctor, folder / second]
                result = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT, timeout=300)
                self.assertRegex(result.stdout, said)
                self.assertIn("TCP (ob1, tcp)", result.stdout)
                clocks = re.search(r"clocks, from rank 0's +([+-][\d.]+) to ([+-][\d.]+) s", result.stdout)
                for offset in clocks.groups():  # the same clock: off by the way there at most
                    self.assertLess(abs(float(offset)), 0.1)


class WholeWay(unittest.TestCase):
    """prepare → train on two ranks → evaluate → embed → neighbors → inspect."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        write_notes_and_clicks(cls.folder)
        cls.config = str(cls.folder / "run.yaml")
        pathlib.Path(cls.config).write_text(CONFIG.format(folder=folder.name), encoding="utf-8")
        cls.must("prepare", cls.config)
        cls.must("train", cls.config, ranks=2)
        cls.must("embed", cls.config, "--output", cls.folder / "all.npy")
        cls.vectors, cls.bytes = read_npy(cls.folder / "all.npy")
        cls.checkpoint = cls.folder / "run" / "checkpoints" / "step-00000005"

    @classmethod
    def must(cls, *command, ranks=1):
        result = run([str(word) for word in command], ranks)
        if result.returncode != 0:
            raise AssertionError(f"{command} ended with {result.returncode}:\n{result.stdout}{result.stderr}")
        return result.stdout

    def refused(self, code, *command):
        result = run([str(word) for word in command])
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result.stderr

    def test_evaluate(self):
        self.must("evaluate", self.config, "--json", self.folder / "report.json")
        self.assertTrue(json.loads((self.folder / "report.json").read_text(encoding="utf-8")))
        none = self.folder / "none" / "report.json"
        self.assertIn(str(none), self.refused(4, "evaluate", "no_config.yaml", "--json", none))

    def test_baselines_read_what_the_shards_were_made_from(self):
        expected = self.must("evaluate", self.config)
        self.assertIn("co-occurrence, popularity", expected)
        lines = (self.folder / "notes.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (self.folder / "moved.jsonl").write_text("".join(lines), encoding="utf-8")
        (self.folder / "turned.jsonl").write_text("".join(reversed(lines)), encoding="utf-8")
        (self.folder / "grown.tsv").write_text((self.folder / "clicks.tsv").read_text() + "more\tn1 n2 n3\n", encoding="utf-8")
        for now in (["data.clicks.seed=7", "data.clicks.heldout_share=0.9", 'data.title="{id}"'],
                    [f"data.notes={self.folder}/moved.jsonl"]):
            self.assertEqual(self.must("evaluate", self.config, "--set", *now), expected)
        for now in (f"data.notes={self.folder}/turned.jsonl", f"data.clicks.files=[{self.folder}/grown.tsv]",
                    f"data.clicks.files=[{self.folder}/clicks.tsv,{self.folder}/clicks.tsv]"):
            self.assertRegex(self.refused(3, "evaluate", self.config, "--set", now), "prepared from .*--no-baselines")
            self.must("evaluate", self.config, "--no-baselines", "--set", now)

    def test_an_evaluation_on_other_shards_is_warned_of(self):
        other = f"data.shards={self.folder}/other_split"
        self.must("prepare", self.config, "--set", other, "data.clicks.seed=7")
        said = "was trained on other shards than"
        self.assertIn(said, run(["evaluate", self.config, "--no-baselines", "--set", other]).stderr)
        self.assertNotIn(said, run(["evaluate", self.config, "--no-baselines"]).stderr)
        self.assertIn(said, run(["train", self.config, "--resume", "auto", "--set", other]).stderr)

    def test_evaluate_refuses_odd_numbers(self):
        self.assertIn("--generation", self.refused(2, "evaluate", self.config, "--generation", "-1"))
        for weight in ("nan", "inf", "much"):
            self.assertIn("is not a finite number", self.refused(2, "evaluate", self.config, "--popularity-weight", weight))

    def test_evaluate_leaves_no_folder_of_a_run_that_is_not_there(self):
        none = self.folder / "no_run"
        self.must("evaluate", self.config, "--checkpoint", self.checkpoint, "--set", f"train.run={none}")
        self.assertFalse(none.exists())

    def test_vectors_are_normalised_and_named(self):
        self.assertEqual((self.folder / "all.ids.txt").read_text().split(), [f"n{i}" for i in range(60)])
        self.assertEqual(len(self.vectors), 60)
        for vector in self.vectors:
            self.assertAlmostEqual(dot(vector, vector), 1, places=5)

    def expect_vectors(self, name, notes):
        """To rounding: with other notes beside it, a note's products may be summed in another order (AVX2 does so)."""
        found = read_npy(self.folder / name)[0]
        self.assertEqual(len(found), len(notes))
        for vector, note in zip(found, notes):
            self.assertLess(math.dist(vector, self.vectors[int(note[1:])]), 1e-5)

    def test_ranks_and_tensor_groups_give_the_same_vectors(self):
        for ranks, tensor in ((2, 1), (2, 2), (4, 2)):
            with self.subTest(ranks=ranks, tensor=tensor):
                self.must("embed", self.config, "--output", self.folder / "many.npy", "--set", f"parallel.tensor={tensor}", ranks=ranks)
                self.expect_vectors("many.npy", [f"n{i}" for i in range(60)])
        self.must("embed", self.config, "--output", self.folder / "many.npy", "--set", "parallel.tensor=2")  # alone: whole
        self.expect_vectors("many.npy", [f"n{i}" for i in range(60)])
        refused = run([str(word) for word in ("embed", self.config, "--output", "x.npy", "--set", "parallel.tensor=2")], 3)
        self.assertEqual(refused.returncode, 2)
        self.assertIn("3 ranks do not divide into tensor groups of parallel.tensor 2", refused.stderr)

    def test_both_formats_hold_the_same_vectors(self):
        self.must("embed", self.config, "--output", self.folder / "all.h5")
        self.assertIn(self.bytes, (self.folder / "all.h5").read_bytes())  # not compressed: the rows as they are
        text = self.must("inspect", self.folder / "all.h5")
        for part in ("note vectors", "60", "normalised", "step"):
            self.assertIn(part, text)

    def test_pool_leaves_out_what_nobody_clicked(self):
        self.must("embed", self.config, "--output", self.folder / "pool.npy", "--pool")
        ids = (self.folder / "pool.ids.txt").read_text().split()
        self.assertNotIn("n59", ids)
        self.expect_vectors("pool.npy", ids)

    def test_new_notes_are_tokenised_as_the_shards_were(self):
        lines = (self.folder / "notes.jsonl").read_text(encoding="utf-8").splitlines()
        (self.folder / "new.jsonl").write_text("\n".join(reversed(lines)) + "\n", encoding="utf-8")
        self.must("embed", self.config, "--output", self.folder / "new.npy", "--notes", self.folder / "new.jsonl")
        ids = (self.folder / "new.ids.txt").read_text().split()
        self.assertEqual(ids, [f"n{i}" for i in reversed(range(60))])
        self.expect_vectors("new.npy", ids)

    def neighbors(self, *options):
        """[(heading, [(id, cosine)])] of what is printed."""
        blocks = []
        for block in self.must("neighbors", self.config, *options).split("\n\n"):
            heading, *rows = block.strip("\n").split("\n")
            found = [re.fullmatch(r" *\d+ +(-?[\d.]+) +(\S+) +.*", row) for row in rows]
            if any(found):
                blocks.append((heading, [(row[2], float(row[1])) for row in found if row]))
        return blocks

    def nearest(self, query, count, pool=range(60)):
        others = sorted((-dot(self.vectors[query], self.vectors[i]), f"n{i}") for i in pool if i != query)
        return [-cosine for cosine, _ in others[:count]], others

    def test_neighbors_by_id(self):
        blocks = self.neighbors("--id", "n3", "--id", "n45", "--count", "7")
        self.assertEqual([heading.split()[0] for heading, _ in blocks], ["n3", "n45"])
        for query, (_, found) in zip((3, 45), blocks):
            self.assertNotIn(f"n{query}", [note for note, _ in found])
            self.assertEqual(len(found), 7)
            for (note, cosine), wanted in zip(found, self.nearest(query, 7)[0]):
                self.assertAlmostEqual(cosine, wanted, delta=6e-4)  # printed with three digits
                self.assertAlmostEqual(cosine, dot(self.vectors[query], self.vectors[int(note[1:])]), delta=6e-4)

    def test_neighbors_of_the_pool_only(self):
        ((_, found),) = self.neighbors("--id", "n58", "--count", "59", "--pool", "clicked")
        self.assertNotIn("n59", [note for note, _ in found])
        ((_, found),) = self.neighbors("--id", "n58", "--count", "59")
        self.assertEqual(sorted(note for note, _ in found), sorted(f"n{i}" for i in range(60) if i != 58))

    # A new note has no hashtags: its nearest note is found by the words that it shares.
    def test_neighbors_by_text(self):
        note = json.loads((self.folder / "notes.jsonl").read_text(encoding="utf-8").splitlines()[25])
        ((heading, found), (other, _)) = self.neighbors("--text", note["title"], "--content", note["content"], "--text", "rocket")
        self.assertIn(note["title"], heading)
        self.assertIn("rocket", other)
        self.assertEqual(len(found), 10)
        del note["hashtags"], note["category"]
        (self.folder / "one.jsonl").write_text(json.dumps(note) + "\n", encoding="utf-8")
        self.must("embed", self.config, "--output", self.folder / "one.npy", "--notes", self.folder / "one.jsonl")
        ((query,), _) = read_npy(self.folder / "one.npy")
        for (note, cosine), wanted in zip(found, sorted((-dot(query, v) for v in self.vectors))):
            self.assertAlmostEqual(cosine, -wanted, delta=6e-4)

    def test_neighbors_of_examples_and_approximate_indexes(self):
        self.assertEqual(len(self.neighbors("--examples", "4", "--count", "3")), 4)
        for index in ("hnsw", "ivf"):
            with self.subTest(index):
                text = self.must("neighbors", self.config, "--index", index, "--id", "n3")
                self.assertRegex(text, r"recall@10 against exact search [\d.]+ %")
        self.assertIn("unknown", self.refused(2, "neighbors", self.config, "--id", "unknown"))
        self.refused(2, "neighbors", self.config, "--content", "no title")

    def test_bench_step(self):
        file = self.folder / "bench.json"
        text = self.must("bench", "step", self.config, "--steps", "2", "--json", file, ranks=2)
        self.assertIn("notes/s", text)
        report = json.loads(file.read_text(encoding="utf-8"))
        self.assertEqual((report["ranks"], report["step"]["notes_per_step"]), (2, 16))
        self.assertEqual(report["step"]["notes_from"], str(self.folder / "shards"))
        self.must("bench", "step", self.config, "--synthetic", "--steps", "1", "--json", file, "--set",
                  "train.micro_batch_pairs=2")
        report = json.loads(file.read_text(encoding="utf-8"))
        self.assertEqual(report["step"]["micro_batches"], 4)
        # A second forward pass is work, but none that the model asks for.
        self.assertLess(report["step"]["model_flops_per_step"], 0.9 * report["step"]["flops_per_step"])

    def test_bench_of_ops_by_ranks(self):
        for command in ("gemm", "kernels"):
            file = self.folder / f"{command}.json"
            self.must("bench", command, self.config, "--rows", "16", "--json", file, ranks=2)
            report = json.loads(file.read_text(encoding="utf-8"))
            self.assertEqual((report["ranks"], report["tile_rows"]), (2, 16))

    def test_inspect(self):
        text = self.must("inspect", self.folder / "shards", "--notes", "2")
        for part in ("notes", "60", "note n0 ", "note n59 ", "[EMB]", "{'title': music: ", "The category is: music"):
            self.assertIn(part, text)
        text_of_shards = text
        text = self.must("inspect", self.folder / "shards" / "notes-00000.h5", "--notes", "1")
        for part in ("category_input/values", "uint64", "note n0 "):
            self.assertIn(part, text)
        self.assertEqual(self.must("inspect", self.folder / "shards" / "shards.json", "--notes", "2"), text_of_shards)
        self.assertIn("train/query", self.must("inspect", self.folder / "shards" / "pairs-00000.h5"))
        self.assertIn("[EMB]", self.must("inspect", self.folder / "shards" / "tokenizer.model"))
        golden = pathlib.Path(__file__).resolve().parents[1] / "golden" / "tokenizers"
        text = self.must("inspect", golden / "llama3" / "tokenizer.json")
        for part in ("tokenizer.json (BPE)", "903 ([EMB] included)", "900  <|begin_of_text|>", "901  <|end_of_text|>", "902  [EMB]"):
            self.assertIn(part, text)
        self.assertIn("nothing stands before a text", self.must("inspect", golden / "qwen2" / "tokenizer.json"))
        text = self.must("inspect", self.checkpoint)
        for part in ("model.layers.1.mlp.down_proj.weight", "32 × 64", "f32", "5 of 5"):
            self.assertIn(part, text)
        self.assertNotIn("does not know", text)
        self.assertEqual(self.must("inspect", self.checkpoint / "manifest.json"), text)
        self.assertIn("whole", self.must("inspect", self.folder / "run"))
        self.assertIn("note_head.tau", self.must("inspect", self.checkpoint / "note_head.safetensors"))

    # From the file to a note's vector, with a tokenizer that has no BOS.
    def test_a_tokenizer_json(self):
        golden = pathlib.Path(__file__).resolve().parents[1] / "golden" / "tokenizers" / "qwen2"
        keys = ["--set", f"data.tokenizer.model={golden / 'tokenizer.json'}", f"data.shards={self.folder}/qwen2",
                f"train.run={self.folder}/qwen2_run"]
        self.must("prepare", self.config, *keys)
        self.assertIn("Extract the note", self.must("inspect", self.folder / "qwen2", "--notes", "1"))
        self.must("train", self.config, *keys, ranks=2)
        checkpoint = self.folder / "qwen2_run" / "checkpoints" / "step-00000005"
        for name in ("tokenizer.json", "tokenizer_config.json"):
            self.assertEqual((checkpoint / name).read_bytes(), (golden / name).read_bytes())
        text = self.must("neighbors", self.config, *keys, "--text", "rocket")
        self.assertIn("rocket", text)

    def test_two_prepares_of_one_folder(self):
        with tempfile.TemporaryDirectory() as name:
            write_notes_and_clicks(pathlib.Path(name))
            config = pathlib.Path(name) / "run.yaml"
            config.write_text(CONFIG.format(folder=name), encoding="utf-8")
            both = [subprocess.Popen([NOTELLM, "prepare", config, "--set", f"data.clicks.seed={seed}", "data.pairs_per_shard=1"],
                                     env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                    for seed in (1, 2)]
            for process in both:
                self.assertEqual(process.wait(timeout=300), 0, process.stderr.read())
                process.stderr.close()
            self.assertIn("all files read and checked", self.must("inspect", pathlib.Path(name) / "shards"))
            self.assertEqual([path.name for path in pathlib.Path(name).glob("shards*")], ["shards"])

    def test_damage_is_refused(self):
        copy = self.folder / "damaged"
        shutil.copytree(self.folder / "shards", copy)
        shard = copy / "notes-00000.h5"
        shard.write_bytes(shard.read_bytes()[:-100])
        self.assertIn("notes-00000.h5", self.refused(3, "inspect", shard))
        self.assertIn("notes-00000.h5", self.refused(3, "inspect", copy))
        self.must("embed", self.config, "--output", self.folder / "bit.h5")
        vectors = bytearray((self.folder / "bit.h5").read_bytes())
        vectors[-1] ^= 1
        (self.folder / "bit.h5").write_bytes(vectors)
        self.assertIn("bit.h5: damaged", self.refused(3, "inspect", self.folder / "bit.h5"))

        run_copy = self.folder / "damaged_run"
        shutil.copytree(self.folder / "run", run_copy)
        name = "model-00001-of-00001.safetensors"
        model = run_copy / "checkpoints" / "step-00000005" / name
        (model.parent / "foreign.txt").write_text("x")
        self.assertIn("foreign.txt, 1 B, which the manifest does not know", self.must("inspect", model.parent))
        data = bytearray(model.read_bytes())
        data[-1] ^= 1
        model.write_bytes(data)
        self.assertIn(name, self.refused(5, "inspect", model.parent))
        self.assertIn(name, self.refused(5, "inspect", run_copy))
        self.assertIn(name, self.refused(5, "embed", self.config, "--checkpoint", run_copy, "--output", self.folder / "x.npy"))
        self.assertFalse((self.folder / "x.npy").exists())

    def test_an_output_that_cannot_be_written_is_known_before_the_work(self):
        for output in (self.folder / "no_such_folder" / "x.h5", self.folder / "no_such_folder" / "x.npy"):
            self.assertIn(str(output), self.refused(4, "embed", "no_config.yaml", "--output", output))
        (self.folder / "folder.h5").mkdir()
        self.assertIn("it is a folder", self.refused(4, "embed", "no_config.yaml", "--output", self.folder / "folder.h5"))
        (self.folder / "taken.ids.txt").mkdir()  # of the two files of a .npy
        self.assertIn("taken.ids.txt: it is a folder",
                      self.refused(4, "embed", "no_config.yaml", "--output", self.folder / "taken.npy"))

    def test_links_and_pipes_as_outputs(self):
        (self.folder / "link.npy").symlink_to("linked.npy")
        self.must("embed", self.config, "--output", self.folder / "link.npy")
        self.assertTrue((self.folder / "link.npy").is_symlink())
        self.expect_vectors("linked.npy", [f"n{i}" for i in range(60)])
        lines = self.must("generate", self.config, "--id", "n1", "--output", "/dev/stdout")
        self.assertEqual(json.loads(lines)["id"], "n1")

    def test_ids_that_a_file_cannot_hold(self):
        note = {"title": "rocket", "content": "moon"}
        (self.folder / "odd.jsonl").write_text("".join(json.dumps({"id": f"a\0{i}", **note}) + "\n" for i in range(2)),
                                               encoding="utf-8")
        odd = ["embed", self.config, "--notes", self.folder / "odd.jsonl", "--output"]
        self.assertIn("the note's id 'a\\00' holds a NUL byte", self.refused(3, *odd, self.folder / "odd.h5"))
        self.assertFalse((self.folder / "odd.h5").exists())
        self.must(*odd, self.folder / "odd.npy")
        self.assertEqual((self.folder / "odd.ids.txt").read_bytes(), b"a\x000\na\x001\n")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
