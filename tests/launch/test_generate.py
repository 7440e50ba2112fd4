#!/usr/bin/python3
"""notellm generate and evaluate --generation, on ninety made-up notes that a small model learns in a few seconds.

test_generate.py NOTELLM MPIEXEC [unittest options]
"""

import json
import math
import pathlib
import random
import sys
import tempfile
import unittest

from program import run

TOPICS = {
    "music": "guitar piano violin concert melody rhythm chord singer album studio",
    "garden": "flower seed soil watering rose tulip hedge spade compost lawn",
    "outer space": "rocket planet orbit moon comet telescope galaxy launch crater probe",
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
loss: {{alpha: 3}}
optimizer: {{learning_rate: 0.003, warmup_steps: 1}}
train: {{run: {folder}/run, steps: 300, pairs_per_step: 8, checkpoint_every: 300}}
"""


class Generate(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        random.seed(1)
        cls.notes, clicks = [], []
        for i in range(90):  # nobody clicks the last thirty
            topic = list(TOPICS)[i % 3]
            text = " ".join(random.choices(TOPICS[topic].split(), k=12))
            cls.notes.append({"id": f"n{i}", "title": text[:20], "content": text, "category": topic,
                              "hashtags": random.sample(TOPICS[topic].split(), 2)})
        for user in range(120):
            clicks.append(f"u{user}\t" + " ".join(f"n{3 * i + user % 3}" for i in random.sample(range(20), 4)))
        (cls.folder / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in cls.notes), encoding="utf-8")
        (cls.folder / "clicks.tsv").write_text("\n".join(clicks) + "\n", encoding="utf-8")
        cls.config = cls.folder / "run.yaml"
        cls.config.write_text(CONFIG.format(folder=folder.name), encoding="utf-8")
        cls.must("prepare", cls.config)
        cls.must("train", cls.config)
        cls.all = cls.lines()

    @classmethod
    def must(cls, *command, ranks=1):
        result = run(command, ranks)
        if result.returncode != 0:
            raise AssertionError(f"{command} ended with {result.returncode}:\n{result.stdout}{result.stderr}")
        return result.stdout

    @classmethod
    def lines(cls, *options, ranks=1):
        return [json.loads(line) for line in cls.must("generate", cls.config, *options, ranks=ranks).splitlines()]

    def refused(self, code, *options):
        result = run(("generate", self.config, *options))
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result.stderr

    def test_new_notes_get_their_category(self):
        self.assertEqual([line["id"] for line in self.all], [note["id"] for note in self.notes])
        right = sum(line["category"] == note["category"] for line, note in zip(self.all[60:], self.notes[60:]))
        self.assertGreaterEqual(right, 27)  # of 30, where 10 are guessing
        self.assertTrue(all(line["ended"] for line in self.all))

    def test_ranks_and_tensor_groups_change_nothing(self):
        for ranks, tensor, options in ((2, 1, []), (2, 2, []), (4, 2, ["--vectors"])):
            with self.subTest(ranks=ranks, tensor=tensor):
                lines = self.lines(*options, "--set", f"parallel.tensor={tensor}", ranks=ranks)
                self.assertEqual([(line["id"], line["category"]) for line in lines],
                                 [(line["id"], line["category"]) for line in self.all])
        drawn = ["--task", "hashtags", "--temperature", "0.8", "--top-k", "20", "--top-p", "0.9", "--id", "n3", "--id", "n70"]
        alone = self.lines(*drawn)
        self.assertEqual(self.lines(*drawn, ranks=2), alone)
        self.assertEqual(self.lines(*drawn, "--set", "parallel.tensor=2", ranks=2), alone)
        self.assertNotEqual(self.lines(*drawn, "--seed", "2"), alone)

    def test_by_id_text_and_file(self):
        two = self.lines("--id", "n65", "--id", "n4")
        self.assertEqual(two, [self.all[65], self.all[4]])
        file = self.folder / "new.jsonl"
        file.write_text("".join(json.dumps({**note, "category": ""}) + "\n" for note in self.notes[::-1]), encoding="utf-8")
        self.assertEqual(self.lines("--notes", file), self.all[::-1])
        (line,) = self.lines("--text", "rocket", "--content", "moon orbit comet telescope planet rocket probe")
        self.assertEqual((line["id"], line["title"], line["category"]), ("(text)", "rocket", "outer space"))

    def test_vectors_are_those_of_embed(self):
        output = self.folder / "out.jsonl"
        self.assertEqual(self.must("generate", self.config, "--vectors", "--output", output), "")
        lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
        self.assertEqual([line["category"] for line in lines], [line["category"] for line in self.all])
        self.must("embed", self.config, "--output", self.folder / "all.npy")
        data = (self.folder / "all.npy").read_bytes()
        values = memoryview(data[-90 * 16 * 4:]).cast("f")
        for i, line in enumerate(lines):
            self.assertLess(math.dist(line["vector"], values[16 * i:16 * i + 16]), 1e-5)

    def test_constrained_is_never_illusory(self):
        # Hot enough that nearly any token may be drawn.
        hot = ["--temperature", "30", "--max-tokens", "12"]
        loose = self.lines(*hot)
        self.assertGreater(sum(line["category"] not in TOPICS for line in loose), 60)
        closed = self.lines(*hot, "--constrain")
        self.assertEqual({line["category"] for line in closed}, set(TOPICS))
        self.assertEqual([line["category"] for line in self.lines("--constrain")[60:]],
                         [line["category"] for line in self.all[60:]])

    def test_hashtags(self):
        words = {word for words in TOPICS.values() for word in words.split()}
        one, two = (self.lines("--task", "hashtags", "--topics", topics) for topics in (1, 2))
        self.assertEqual(self.lines("--task", "hashtags", "--topics", 2, "--id", "n7"), [two[7]])
        self.assertNotEqual(one, two)  # the prompt says how many
        for lines in (one, two):
            found = [tag for line in lines for tag in line["hashtags"]]
            self.assertGreater(sum(tag in words for tag in found), 0.25 * len(found))  # it begins to learn them

    def test_outputs_may_be_cut(self):
        result = run(("generate", self.config, "--max-tokens", "1"))
        self.assertIn("90 of the outputs were cut", result.stderr)
        self.assertFalse(any(json.loads(line)["ended"] for line in result.stdout.splitlines()))

    def test_bf16(self):
        lines = self.lines("--set", "precision=bf16")
        right = sum(line["category"] == note["category"] for line, note in zip(lines[60:], self.notes[60:]))
        self.assertGreaterEqual(right, 27)

    def test_evaluate(self):
        report = self.folder / "report.json"
        text = self.must("evaluate", self.config, "--generation", "20", "--json", report, ranks=2)
        self.assertIn("unclicked notes in no training pair: categories of 20, hashtags of 20", text)
        generation = json.loads(report.read_text(encoding="utf-8"))["generation"]["unclicked"]
        methods = generation["category"]["methods"]
        self.assertEqual(generation["category"]["notes"], 20)
        self.assertEqual(list(methods), ["majority", "TF-IDF neighbour", "notellm", "notellm, constrained"])
        self.assertLessEqual(methods["majority"]["accuracy"], 0.6)
        self.assertGreaterEqual(methods["notellm"]["accuracy"], 0.85)
        self.assertEqual(methods["notellm, constrained"]["illusory"], 0)
        self.assertEqual(generation["hashtags"]["notes"], 20)
        self.assertEqual(set(generation["hashtags"]["methods"]), {"majority", "TF-IDF neighbour", "notellm"})
        self.must("evaluate", self.config, "--no-baselines", "--json", report)
        self.assertNotIn("generation", json.loads(report.read_text(encoding="utf-8")))

    def test_evaluate_on_tensor_groups(self):
        reports = []
        for ranks, tensor in ((1, 1), (2, 2), (4, 2)):
            report = self.folder / f"report_{ranks}.json"
            text = self.must("evaluate", self.config, "--generation", "20", "--no-baselines", "--json", report,
                             "--set", f"parallel.tensor={tensor}", ranks=ranks)
            self.assertEqual(text.count("all: "), 1)  # rank 0 alone reports
            reports.append(json.loads(report.read_text(encoding="utf-8")))
        for report in reports[1:]:
            self.assertEqual(report["generation"], reports[0]["generation"])
            for name, measured in report["slices"]["all"]["methods"]["notellm"].items():
                self.assertAlmostEqual(measured, reports[0]["slices"]["all"]["methods"]["notellm"][name], delta=0.01)

    def test_what_is_refused(self):
        for options, said in (
                (["--id", "none"], "--id none"),
                (["--id", "n1", "--text", "a"], "--text"),
                (["--id", "n1", "--notes", "x"], "--notes"),
                (["--content", "no title"], "1 --content for 0 --text"),
                (["--text", " "], "--text number 1 is empty"),
                (["--task", "topics"], "topics"),
                (["--task", "hashtags", "--constrain"], "--constrain"),
                (["--task", "hashtags", "--vectors"], "--vectors"),
                (["--topics", "2"], "--topics"),
                (["--task", "hashtags", "--topics", "9"], "at most 3"),
                (["--temperature", "-1"], "temperature -1"),
                (["--temperature", "inf"], "temperature inf"),
                (["--top-k", "3"], "--temperature above 0"),
                (["--temperature", "1", "--top-k", "-1"], "top-k -1"),
                (["--temperature", "1", "--top-p", "1.5"], "top-p 1.5"),
                (["--max-tokens", "0"], "--max-tokens")):
            with self.subTest(options):
                self.assertIn(said, self.refused(2, *options))
        self.assertIn("at most 1 may be generated", self.refused(3, "--constrain", "--max-tokens", "1"))
        self.assertIn("none.jsonl", self.refused(4, "--notes", self.folder / "none.jsonl"))
        self.assertIn("no_folder", self.refused(4, "--output", self.folder / "no_folder" / "x.jsonl"))
        bad = self.folder / "bad.jsonl"
        bad.write_text('{"id": "a"}\n', encoding="utf-8")
        self.assertIn("bad.jsonl", self.refused(3, "--notes", bad))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
