"""Vectors of the export by sentence-transformers, from texts, against those of notellm embed; and the tokens of the texts."""
import pathlib
import tempfile

import numpy
from common import GUIDANCE, NOTELLM, Shards, checkpoints, export, make_notes, prompt, run, within
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    notes = make_notes(folder)
    texts = [prompt(note) for note in notes]
    for model_name, (config, checkpoint) in checkpoints(folder).items():
        exported = export(checkpoint)
        run(NOTELLM, "embed", config, "--checkpoint", checkpoint, "--output", folder / "vectors.npy")
        ours = numpy.load(folder / "vectors.npy")
        model, shards = SentenceTransformer(str(exported), device="cpu"), Shards(config)
        tokenizer = AutoTokenizer.from_pretrained(exported)
        behind = [shards.prompt["emb"]] + shards.prompt["category_guidance"]
        theirs = model.encode(texts)
        assert tokenizer.convert_tokens_to_ids("[EMB]") == shards.prompt["emb"] == len(tokenizer) - 1
        for i, text in enumerate(texts):
            tokens = tokenizer(text)["input_ids"]
            assert tokens == shards.before_emb(i), (text, tokens, shards.before_emb(i))
            tokens, whole = tokenizer(text + "[EMB]" + GUIDANCE)["input_ids"], shards.before_emb(i) + behind
            assert tokens == whole, (text, tokens, whole)
        within(f"{model_name}: 1 - cosine", 1 - (ours * theirs).sum(1).min().item(), 1e-4)
        within(f"{model_name}: length", abs((theirs * theirs).sum(1) - 1).max().item(), 1e-5)
        (folder / "vectors.npy").unlink()
    # In bf16 the roundings of some 40 ops, and of the weights, move a vector by 2 · √40 · 2^-9 of its length, of which the cosine
    # loses half the square.
    run(NOTELLM, "export", checkpoint, folder / "narrow", "--dtype", "bf16")
    narrow = SentenceTransformer(str(folder / "narrow"), device="cpu").encode(texts, convert_to_tensor=True).float()
    cosines = (narrow * model.encode(texts, convert_to_tensor=True)).sum(1) / narrow.norm(dim=1)
    within("trained, exported in bf16: 1 - cosine", 1 - cosines.min().item(), 3e-4)
