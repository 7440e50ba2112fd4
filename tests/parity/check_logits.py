"""Logits of notellm's model and of the export in transformers, in f32, after every token of some prompts."""
import pathlib
import tempfile

import torch
from common import PROBE, Shards, checkpoints, export, load, make_notes, run, within
from safetensors.torch import load_file

with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    make_notes(folder)
    for model_name, (config, checkpoint) in checkpoints(folder).items():
        shards = Shards(config)
        sequences = [shards.sequence(note)[0] for note in range(8)]
        (folder / "tokens").write_text("".join(" ".join(map(str, s)) + "\n" for s in sequences))
        run(PROBE, checkpoint, folder / "tokens", folder / "logits")
        ours = load_file(folder / "logits")["logits"]
        model = load(export(checkpoint))
        with torch.no_grad():
            theirs = torch.cat([model(torch.tensor([s])).logits[0] for s in sequences])
        assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
        # Both in f32; the largest difference against the largest logit. 5 layers of 6 products of up to 172 terms.
        within(f"{model_name}: logits", ((ours - theirs).abs().max() / theirs.abs().max()).item(), 1e-4)
