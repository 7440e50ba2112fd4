#!/usr/bin/python3
"""Import and export as users call them: from a model of the hub to vectors, and the memory that a large one takes.

test_import.py NOTELLM MPIEXEC [unittest options]
"""

import ast
import json
import os
import pathlib
import random
import re
import struct
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from test_commands import ENVIRONMENT, NOTELLM, run, write_notes_and_clicks  # noqa: E402

CONFIG = """\
data:
  notes: {folder}/notes.jsonl
  shards: {folder}/shards
  clicks: {{files: [{folder}/clicks.tsv], heldout_share: 0.3, stop_share: 1}}
  cooccurrence: {{lower: 0, upper: 1000}}
  tokenizer: {{model: {folder}/model/tokenizer.model}}
model: {{from: {folder}/model}}
optimizer: {{learning_rate: 0.003, warmup_steps: 1}}
train: {{run: {folder}/run, steps: 2, pairs_per_step: 8}}
"""


def tensors_of(config):
    """Name → shape of a LLaMA with tied head."""
    dim, ffn, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    yield "model.embed_tokens.weight", [config["vocab_size"], dim]
    yield "model.norm.weight", [dim]
    for layer in range(layers):
        name = f"model.layers.{layer}."
        for part in "qkvo":
            yield f"{name}self_attn.{part}_proj.weight", [dim, dim]
        for part, shape in (("gate", [ffn, dim]), ("up", [ffn, dim]), ("down", [dim, ffn])):
            yield f"{name}mlp.{part}_proj.weight", shape
        for norm in ("input", "post_attention"):
            yield f"{name}{norm}_layernorm.weight", [dim]


def write_model(folder, tokenizer, tokens, dim, layers, spread=0.0):
    """Weights of bf16, normal with that spread; without one zero, in a file without blocks on the disk. Returns its bytes."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": dim, "num_hidden_layers": layers,
              "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 4 * dim, "vocab_size": tokens,
              "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(tokenizer)
    header, end = {}, 0
    for name, shape in tensors_of(config):
        begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if spread:
            for _ in range(end // 2):
                file.write(struct.pack("<f", random.gauss(0, spread))[2:])
        file.truncate(8 + len(text) + end)
    return end


class Import(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.temporary.name)
        write_notes_and_clicks(cls.folder)
        # A tokenizer of these notes; then the model brings it along.
        config = cls.folder / "first.yaml"
        config.write_text(CONFIG.format(folder=cls.folder).replace("model: {from:", "train: {run:").split("optimizer")[0]
                          .replace(f"model: {cls.folder}/model/tokenizer.model", "vocabulary: 420"), encoding="utf-8")
        cls.must("prepare", config)
        cls.tokenizer = (cls.folder / "shards/tokenizer.model").read_bytes()
        cls.tokens = json.loads((cls.folder / "shards/shards.json").read_text())["prompt"]["emb"]

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    @classmethod
    def must(cls, *command, ranks=1):
        result = run([str(part) for part in command], ranks)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    def peak(self, *command):
        """Bytes of memory that the program held at most."""
        # AddressSanitizer holds freed memory back unless told.
        environment = ENVIRONMENT | {"ASAN_OPTIONS": "quarantine_size_mb=0:thread_local_quarantine_size_kb=0"}
        process = subprocess.Popen([NOTELLM, *map(str, command)], env=environment, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.assertEqual(process.returncode, 0)
        return usage.ru_maxrss * 1024

    def check_card(self, card):
        self.assertIn("| notellm |", card)
        self.assertIn('titles by the template\n`"{title}"`, cuts them to 20 tokens and contents to 80, takes at most 3 hashtags',
                      card)
        (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        prompts = [ast.literal_eval(node.value) for node in ast.parse(code).body
                   if isinstance(node, ast.Assign) and node.targets[0].id == "prompt"]
        self.assertEqual(prompts, [
            "Extract the note information in json format, compress it into one word for recommendation, and generate the "
            "category of the note. {'title': TITLE, 'topic': TOPIC, TOPIC, 'content': CONTENT} The compression word is:\""])

    def test_the_whole_way(self):
        write_model(self.folder / "hub", self.tokenizer, self.tokens, 32, 2, spread=0.3)
        self.assertIn("imported", self.must("import", self.folder / "hub", self.folder / "model", "--set", "model.note_dim=16"))
        self.assertIn("written by 'notellm import'", self.must("inspect", self.folder / "model"))
        config = self.folder / "run.yaml"
        config.write_text(CONFIG.format(folder=self.folder), encoding="utf-8")
        self.must("prepare", config)
        self.must("embed", config, "--checkpoint", self.folder / "model", "--output", self.folder / "before.npy")
        self.must("train", config, ranks=2)
        self.must("train", config, "--set", f"train.run={self.folder}/run2", "parallel.tensor=2", "parallel.sharding=none", ranks=2)
        self.must("evaluate", config, "--json", self.folder / "report.json")
        self.must("export", self.folder / "run", self.folder / "exported", "--report", self.folder / "report.json", "--shard-size",
                  "20KB", "--dtype", "f32")
        names = {path.name for path in (self.folder / "exported").iterdir()}
        self.assertLessEqual({"config.json", "README.md", "tokenizer.model", "tokenizer_config.json", "modules.json", "1_Pooling",
                              "2_Dense", "3_Normalize", "generation_config.json", "model.safetensors.index.json",
                              "model-00001-of-00009.safetensors"}, names)
        self.check_card((self.folder / "exported/README.md").read_text(encoding="utf-8"))
        result = run(["export", str(self.folder / "run"), str(self.folder / "exported")])
        self.assertEqual(result.returncode, 4)
        self.assertIn("is there already", result.stderr)
        shipped = [pathlib.Path(__file__).parents[2] / "configs/pretrained.yaml", "--set", "device=cpu", "precision=fp32",
                   f"data.notes={self.folder}/notes.jsonl", 'data.title="{title}"', f"data.shards={self.folder}/shards4",
                   f"data.clicks.files=[{self.folder}/clicks.tsv]", "data.clicks.stop_share=1", "data.cooccurrence.lower=0",
                   "data.cooccurrence.upper=1000", f"data.tokenizer.model={self.folder}/model/tokenizer.model",
                   f"model.from={self.folder}/model", f"train.run={self.folder}/run4", "train.steps=2", "train.pairs_per_step=8"]
        self.must("prepare", *shipped)
        self.must("train", *shipped)
        result = run(["train", str(config), "--set", "model.layers=3", f"train.run={self.folder}/run3"])
        self.assertEqual(result.returncode, 2)
        self.assertIn("model.layers is 3, but", result.stderr)

    # A copy of the model in memory would show, and one of its largest tensors: 8 MiB as they are, 16 MiB as f32.
    def test_memory_does_not_grow_with_the_model(self):
        peaks, sizes = {}, {}
        for name, dim, layers in (("small", 64, 2), ("large", 1024, 2)):
            sizes[name] = write_model(self.folder / name, self.tokenizer, self.tokens, dim, layers)
            peaks[name] = self.peak("import", self.folder / name, self.folder / f"{name}_in")
            peaks[name + " out"] = self.peak("export", self.folder / f"{name}_in", self.folder / f"{name}_out")
        self.assertGreater(sizes["large"], 60e6)
        for out in ("", " out"):
            self.assertLess(peaks["large" + out] - peaks["small" + out], 5e6, peaks)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
