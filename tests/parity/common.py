"""What the parity checks share: made-up notes, the program's commands, models in and out.

Each check_*.py is a program of its own: check_x.py NOTELLM PROBE MPIEXEC, with these and the environment of tests/parity.sh.
"""
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

import h5py
import numpy
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

NOTELLM, PROBE, MPIEXEC = sys.argv[1:4]
ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(os.environ.get("NOTELLM_SHARED", ROOT.parent / "shared"))
ENVIRONMENT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}
WORDS = "river stone lamp garden winter music paper cloud bridge orange silver quiet market window forest".split()
ODD = ["猫と犬", "café", "naïve — “quoted”", "👍🏽 ok", "a  b", "x = {'y': [1, 2]};", "it's", "№ 5"]
INSTRUCTION = ("Extract the note information in json format, compress it into one word for recommendation, and generate the "
               "category of the note.")

torch.set_num_threads(2)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def run(*command, ranks=1):
    """The program or another one; its output when it fails."""
    launcher = [MPIEXEC, "--oversubscribe", "--bind-to", "none", "-n", str(ranks)] if ranks > 1 else []
    result = subprocess.run([*launcher, *map(str, command)], capture_output=True, text=True, check=False, env=ENVIRONMENT)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


def make_notes(folder, count=24):
    """notes.jsonl and clicks.tsv: short texts, so that none is cut; a note in three has signs of other languages."""
    random.seed(4)
    notes = []
    for i in range(count):
        title = " ".join(random.choices(WORDS, k=3)) + (" " + ODD[i % len(ODD)] if i % 3 == 0 else "")
        notes.append({"id": f"n{i}", "title": title, "content": " ".join(random.choices(WORDS, k=8)),
                      "category": WORDS[i % 5], "hashtags": random.sample(WORDS, 2)})
    (folder / "notes.jsonl").write_text("".join(json.dumps(n) + "\n" for n in notes), encoding="utf-8")
    (folder / "clicks.tsv").write_text("".join(f"u{i}\tn{i} n{(i + 7) % count}\n" for i in range(count)), encoding="utf-8")
    return notes


def prompt(note):
    """The text up to before [EMB] of the paper's prompt (data_pipeline/prompt.h)."""
    return (f"{INSTRUCTION} {{'title': {note['title']}, 'topic': {', '.join(note['hashtags'])}, "
            f"'content': {note['content']}}} The compression word is:\"")


GUIDANCE = "\". The category is:"  # behind [EMB]


def write_config(folder, name, **sections):
    """A configuration of a run in the folder, as YAML, of which JSON is a part."""
    config = {"seed": 3, "threads": 1,
              "data": {"notes": str(folder / "notes.jsonl"), "shards": str(folder / f"{name}_shards"),
                       "clicks": {"files": [str(folder / "clicks.tsv")], "format": "lists", "heldout_share": 0,
                                  "stop_share": 1, "min_user_notes": 2},
                       "cooccurrence": {"lower": 0, "upper": 1000},
                       "prompt": {"title_tokens": 1000, "content_tokens": 1000, "max_note_tokens": 2000},
                       "tokenizer": sections.pop("tokenizer", {"vocabulary": 420})},
              "train": {"run": str(folder / f"{name}_run"), **sections.pop("train", {})}, **sections}
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


def put_eos_behind_texts(path, eos):
    """Some tokenizers do so. A text's vector is its last token's, so that an export takes EOS off."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    template = next(step for step in tokenizer["post_processor"]["processors"] if step["type"] == "TemplateProcessing")
    template["single"].append({"SpecialToken": {"id": eos, "type_id": 0}})
    number = next(token["id"] for token in tokenizer["added_tokens"] if token["content"] == eos)
    template["special_tokens"][eos] = {"id": eos, "ids": [number], "tokens": [eos]}
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def hub_models(folder):
    """Folders of the hub: random Qwen2 and LLaMA of three generations, the second with Llama 3's frequencies; a real one."""
    styles = ROOT / "tests/golden/tokenizers"  # of some hundred tokens
    sizes = dict(vocab_size=1024, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                 intermediate_size=48, max_position_embeddings=512, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2)
    llama3 = dict(rope_type="llama3", rope_theta=10000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=64)
    configs = {"qwen2": transformers.Qwen2Config(**sizes),
               "llama3": transformers.LlamaConfig(**sizes, head_dim=12, tie_word_embeddings=True, rope_parameters=llama3),
               "llama2": transformers.LlamaConfig(**sizes), "smollm": transformers.LlamaConfig(**sizes)}
    classes = {"llama2": "LlamaTokenizer", "smollm": "GPT2Tokenizer"}  # as the hub has them
    for i, (name, config) in enumerate(configs.items()):
        torch.manual_seed(i)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for key, p in model.named_parameters():
                p.normal_(1.0 if "norm" in key else 0.0, 0.3)
        model.save_pretrained(folder / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(styles / name / file, folder / name)
        if name in classes:
            path = folder / name / "tokenizer_config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": classes[name]}), encoding="utf-8")
    put_eos_behind_texts(folder / "llama3/tokenizer.json", "<|end_of_text|>")
    shutil.copytree(SHARED / "models/stories260K", folder / "stories260K")
    return [*configs, "stories260K"]


def checkpoints(folder):
    """Name → (configuration of its shards, checkpoint): imported ones and one that is trained here."""
    found = {}
    for name in hub_models(folder):
        checkpoint = folder / f"{name}_imported"
        run(NOTELLM, "import", folder / name, checkpoint, "--set", "model.note_dim=24")
        tokenizer = next(checkpoint / file for file in ("tokenizer.json", "tokenizer.model") if (checkpoint / file).exists())
        found[name] = (write_config(folder, name, tokenizer={"model": str(tokenizer)},
                                    model={"from": str(checkpoint)}), checkpoint)
    config = write_config(folder, "trained", train={"steps": 12, "pairs_per_step": 8},
                          model={"dim": 32, "layers": 3, "heads": 4, "kv_heads": 2, "ffn": 48, "note_dim": 24, "context": 512,
                                 "init": {"embedding_std": 0.3, "matrix_std": 0.2}},
                          optimizer={"learning_rate": 0.01, "warmup_steps": 1})
    found["trained"] = (config, folder / "trained_run/checkpoints/step-00000012")
    for name, (path, _) in found.items():
        run(NOTELLM, "prepare", path)
    run(NOTELLM, "train", config)
    return found


def export(checkpoint):
    """The checkpoint as a folder of the hub."""
    folder = checkpoint.parent / f"{checkpoint.name}_exported"
    if not folder.exists():
        run(NOTELLM, "export", checkpoint, folder)
    return folder


def load(exported):
    return transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()


def tensors(folder, pattern):
    """All tensors of a folder's safetensors files of that name."""
    found = {}
    for path in sorted(pathlib.Path(folder).glob(pattern)):
        found |= load_file(path)
    return found


class Ragged:
    def __init__(self, file, name):
        self.offsets, self.values = file[name + "/offsets"][:], file[name + "/values"][:]

    def __getitem__(self, i):
        return self.values[self.offsets[i]:self.offsets[i + 1]].tolist()


class Shards:
    """Notes of the category task, and the training pairs."""

    def __init__(self, config):
        folder = pathlib.Path(json.loads(config.read_text(encoding="utf-8"))["data"]["shards"])
        self.prompt = json.loads((folder / "shards.json").read_text(encoding="utf-8"))["prompt"]
        with h5py.File(folder / "notes-00000.h5") as notes, h5py.File(folder / "pairs-00000.h5") as pairs:
            self.inputs, self.categories = Ragged(notes, "category_input"), Ragged(notes, "category")
            self.pairs = list(zip(pairs["train/query"][:].tolist(), pairs["train/target"][:].tolist()))

    def before_emb(self, note):
        return self.prompt["category_instruction"] + self.inputs[note]

    def sequence(self, note):
        """Tokens, the row before [EMB], the labels of the last rows."""
        before, category = self.before_emb(note), self.categories[note]
        tokens = before + [self.prompt["emb"]] + self.prompt["category_guidance"] + category
        return tokens, len(before) - 1, category + [self.prompt["eos"]]


def within(name, error, bound):
    """Prints and judges."""
    print(f"  {name}: {error:.2e} (at most {bound:.0e})")
    if not error <= bound:
        raise SystemExit(f"FAILED: {name}")
