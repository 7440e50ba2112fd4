"""Twenty steps with loss.gradient: released_code on two ranks, against the authors' way of computing it in plain torch: each
rank takes the gradient through its own notes' vectors alone, and the ranks' gradients are averaged.

The batch is all training pairs at once. Both begin with the same imported model and are exported: losses, and the vectors of
the two exports, must agree.
"""
import json
import math
import pathlib
import tempfile

import torch
from common import NOTELLM, Shards, checkpoints, export, load, make_notes, run, tensors, within
from objective import contrastive, vectors_and_token_losses

ALPHA, STEPS, RATE, DECAY, RANKS = 0.01, 20, 3e-3, 0.01, 2
NO_DECAY = ("norm", "bias", "tau")


class Twin:
    """The same run in torch."""

    def __init__(self, checkpoint, shards):
        self.shards, self.model = shards, load(export(checkpoint)).double()
        head = tensors(checkpoint, "note_head.safetensors")
        self.projection = torch.nn.Parameter(head["note_head.weight"].double())
        self.tau = torch.nn.Parameter(head["note_head.tau"].double()[0])
        self.named = dict(self.model.named_parameters()) | {"note_head.weight": self.projection, "note_head.tau": self.tau}
        groups = [{"params": [p for n, p in self.named.items() if not any(k in n for k in NO_DECAY)], "weight_decay": DECAY},
                  {"params": [p for n, p in self.named.items() if any(k in n for k in NO_DECAY)], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8)
        self.notes = [n for pair in shards.pairs for n in pair]

    def parts(self):
        z, token_losses = vectors_and_token_losses(self.model, self.projection, self.shards, self.notes)
        return z, token_losses, (contrastive(z, self.tau) + ALPHA * token_losses.mean()) / (1 + ALPHA)

    def step(self, rate):
        """Returns the loss before it."""
        self.optimizer.zero_grad()
        z, token_losses, loss = self.parts()
        half = len(z) // 4 * 2  # whole pairs; how notes are shared out has no say in the average
        for own in (slice(0, half), slice(half, len(z))):
            seen = torch.cat([z[:own.start].detach(), z[own], z[own.stop:].detach()])
            (contrastive(seen, self.tau) / (1 + ALPHA) / RANKS).backward(retain_graph=True)
        (ALPHA * token_losses.mean() / (1 + ALPHA)).backward()
        norm = math.sqrt(sum((p.grad ** 2).sum().item() for p in self.named.values()))
        for p in self.named.values():
            p.grad *= min(1.0, 1.0 / norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return loss.item()


with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    make_notes(folder, 10)
    config, checkpoint = checkpoints(folder)["qwen2"]
    shards = Shards(config)
    values = json.loads(config.read_text(encoding="utf-8"))
    values["loss"] = {"alpha": ALPHA, "hashtag_share": 0, "gradient": "released_code", "mask_known": False}
    values["optimizer"] = {"learning_rate": RATE, "weight_decay": DECAY, "warmup_steps": 0, "final_share": 1}
    values["train"] = {"run": str(folder / "released"), "steps": STEPS, "pairs_per_step": len(shards.pairs)}
    (folder / "released.yaml").write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    run(NOTELLM, "train", folder / "released.yaml", ranks=RANKS)
    ours = [json.loads(line)["loss"] for line in (folder / "released/metrics.jsonl").read_text().splitlines()]
    twin = Twin(checkpoint, shards)
    theirs = [twin.step(RATE) for _ in range(STEPS)]
    assert len(ours) == STEPS and theirs[-1] < 0.9 * theirs[0], "nothing was learned"
    print(f"  losses: {theirs[0]:.4f} → {theirs[-1]:.4f}")
    within("loss of any of the steps", max(abs(a - b) / b for a, b in zip(ours, theirs)), 1e-4)
    last = folder / f"released/checkpoints/step-{STEPS:08}"
    projection = load(export(last)).double(), tensors(last, "note_head.safetensors")["note_head.weight"].double()
    with torch.no_grad():
        z = vectors_and_token_losses(*projection, shards, twin.notes)[0]
        within("1 - cosine of the vectors afterwards", 1 - (z * twin.parts()[0]).sum(1).min().item(), 1e-4)
