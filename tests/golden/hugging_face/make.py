#!/usr/bin/env python3
"""Small random models as transformers writes them, and what it computes with them: logits, note vectors, the joint loss
of two pairs of notes and all its gradients, in double precision.

    python3 tests/golden/hugging_face/make.py      # with torch, transformers, safetensors; writes beside itself

tests/training/test_hugging_face_golden.cpp reads them. Each folder is a model of the hub; golden.safetensors has the
values, notes.json the notes, which all models share.
"""
import json
import pathlib
import shutil

import torch
import transformers
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
TOKENS, EMB, EOS = 39, 39, 2
TAU, ALPHA = 1.0, 0.5
NOTES = {
    "instruction": [1, 10, 11],
    "guidance": [12, 13],
    "emb": EMB,
    "eos": EOS,
    "inputs": [[5, 17, 30, 8], [22, 6, 38, 14, 9, 27, 33], [3, 3, 25], [36, 20, 7, 31, 18, 4, 16, 29, 24]],
    "categories": [[21, 9], [35], [28, 34], [15]],
    "pairs": [[0, 1], [2, 3]],
    "tau": TAU,
    "alpha": ALPHA,
}
SIZES = dict(vocab_size=TOKENS, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             intermediate_size=24, max_position_embeddings=64, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=EOS)
# Of its three frequencies the first is kept, the second mixed, the third divided.
LLAMA3 = dict(rope_type="llama3", rope_theta=20.0, factor=4.0, low_freq_factor=0.5, high_freq_factor=2.0,
              original_max_position_embeddings=16)
MODELS = {
    "llama": (transformers.LlamaConfig(**SIZES), torch.float32, "1GB"),
    "mistral": (transformers.MistralConfig(**SIZES, sliding_window=None), torch.bfloat16, "1GB"),
    "qwen2": (transformers.Qwen2Config(**SIZES), torch.float16, "1GB"),
    "llama3_tied": (transformers.LlamaConfig(**SIZES, head_dim=6, tie_word_embeddings=True, rope_parameters=LLAMA3),
                    torch.float32, "6KB"),
}


def make_model(config, dtype):
    """Random weights of a size that makes attention uneven, rounded to the type they are stored in."""
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(1.0 if "norm" in name else 0.0, 0.5 if "embed" in name or "lm_head" in name else 0.3)
    return model.to(dtype)


def with_emb(model):
    """With [EMB] as the mean of the rows, rounded to f32 as the program keeps it."""
    model.resize_token_embeddings(TOKENS + 1, mean_resizing=False)
    with torch.no_grad():
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            table.weight[TOKENS] = table.weight[:TOKENS].mean(0).float().double()
    return model


def joint_loss(model, projection, tau):
    vectors, logits, token_losses = [], [], []
    for note, category in zip(NOTES["inputs"], NOTES["categories"]):
        before = NOTES["instruction"] + note
        sequence = before + [EMB] + NOTES["guidance"] + category
        out = model(torch.tensor([sequence]), output_hidden_states=True)
        vector = projection @ out.hidden_states[-1][0, len(before) - 1]
        vectors.append(vector / vector.norm())
        first = len(sequence) - len(category) - 1
        logits.append(out.logits[0, first:])
        token_losses.append(torch.nn.functional.cross_entropy(logits[-1], torch.tensor(category + [EOS]), reduction="none"))
    z = torch.stack(vectors)
    similarity = z @ z.T * tau.exp()
    similarity = similarity.masked_fill(torch.eye(len(z), dtype=torch.bool), float("-inf"))
    contrastive = torch.nn.functional.cross_entropy(similarity, torch.arange(len(z)) ^ 1)
    token = torch.cat(token_losses).mean()
    return (contrastive + ALPHA * token) / (1 + ALPHA), contrastive, token, z, torch.cat(logits)


def main():
    (HERE / "notes.json").write_text(json.dumps(NOTES) + "\n")
    for i, (name, (config, dtype, shard)) in enumerate(MODELS.items()):
        torch.manual_seed(100 + i)
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        model = make_model(config, dtype)
        model.save_pretrained(folder, max_shard_size=shard)
        (folder / "generation_config.json").unlink(missing_ok=True)
        projection = torch.randn(6, 16).mul(0.3).double().requires_grad_()
        tau = torch.tensor(TAU, dtype=torch.double, requires_grad=True)
        # Read again: .to() would have rounded the rotary frequencies too.
        model = with_emb(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).double())
        loss, contrastive, token, z, logits = joint_loss(model, projection, tau)
        loss.backward()
        golden = {"note_head.weight": projection.detach(), "vectors": z.detach(), "logits": logits.detach(),
                  "losses": torch.stack([loss, contrastive, token]).detach(),
                  "gradient.note_head.weight": projection.grad, "gradient.note_head.tau": tau.grad.reshape(1)}
        golden |= {"gradient." + n: p.grad for n, p in model.named_parameters()}
        save_file({n: t.float().contiguous() for n, t in golden.items()}, folder / "golden.safetensors")


main()
