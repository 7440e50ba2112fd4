"""The joint loss of one step, and its gradient, against torch on the export: imported models and one trained here.

One step of AdamW with beta1 = 1/2 leaves half of the gradient as the first moment. The batch is all training pairs at once, so
that the order of data has no say.
"""
import json
import pathlib
import tempfile

import torch
from common import NOTELLM, Shards, checkpoints, export, load, make_notes, run, tensors, within
from objective import contrastive, vectors_and_token_losses

ALPHA = 0.3

with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    make_notes(folder, 10)
    for model_name, (config, checkpoint) in checkpoints(folder).items():
        shards = Shards(config)
        values = json.loads(config.read_text(encoding="utf-8"))
        values["model"] = {"from": str(checkpoint)}
        values["loss"] = {"alpha": ALPHA, "hashtag_share": 0}
        values["optimizer"] = {"beta1": 0.5, "clip": 0, "learning_rate": 0}
        values["train"] = {"run": str(folder / f"{model_name}_step"), "steps": 1, "pairs_per_step": len(shards.pairs)}
        (folder / "step.yaml").write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
        run(NOTELLM, "train", folder / "step.yaml")
        metrics = json.loads((folder / f"{model_name}_step/metrics.jsonl").read_text().splitlines()[0])
        moments = tensors(folder / f"{model_name}_step/checkpoints/step-00000001", "optimizer-*.safetensors")

        model = load(export(checkpoint)).double()
        head = tensors(checkpoint, "note_head.safetensors")
        projection = head["note_head.weight"].double().requires_grad_()
        tau = head["note_head.tau"].double()[0].requires_grad_()
        notes = [n for pair in shards.pairs for n in pair]
        known = {p for q, t in shards.pairs for p in ((q, t), (t, q))}
        z, token_losses = vectors_and_token_losses(model, projection, shards, notes)
        loss = (contrastive(z, tau, notes, known) + ALPHA * token_losses.mean()) / (1 + ALPHA)
        loss.backward()
        within(f"{model_name}: loss", abs(metrics["loss"] - loss.item()) / loss.item(), 1e-5)
        expected = {n: p.grad for n, p in model.named_parameters()}
        expected |= {"note_head.weight": projection.grad, "note_head.tau": tau.grad.reshape(1)}
        worst, scale = 0.0, 2 * tau.exp().item() / (1 + ALPHA)  # tau's is a sum of terms of this size that cancel
        for key, gradient in expected.items():
            ours = 2 * moments["first_moment." + key][: len(gradient)].double()
            size = scale if key == "note_head.tau" else gradient.norm().item()
            worst = max(worst, ((ours - gradient).norm() / size).item())
        # f32 against double: sums of up to 500 terms through some 60 ops; the rotary angles of transformers are in f32.
        within(f"{model_name}: worst gradient of {len(expected)} parameters", worst, 1e-4)
