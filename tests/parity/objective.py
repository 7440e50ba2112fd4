"""NoteLLM's joint loss in plain torch, on a transformers model: what docs/notellm.md §4 and §5 say, nothing shared."""
import torch
from torch.nn.functional import cross_entropy


def vectors_and_token_losses(model, projection, shards, notes):
    """Vector of each note, and the losses of all their labelled tokens."""
    vectors, losses = [], []
    for note in notes:
        tokens, row, labels = shards.sequence(note)
        out = model(torch.tensor([tokens]), output_hidden_states=True)
        vector = projection @ out.hidden_states[-1][0, row]
        vectors.append(vector / vector.norm())
        losses.append(cross_entropy(out.logits[0, -len(labels):], torch.tensor(labels), reduction="none"))
    return torch.stack(vectors), torch.cat(losses)


def contrastive(z, tau, notes=None, known=frozenset()):
    """Mean over rows. notes, known: leaves out other places of the same note, and known positives of it."""
    n = len(z)
    left_out = torch.eye(n, dtype=torch.bool)
    if notes is not None:
        for i in range(n):
            for j in range(n):
                if j not in (i, i ^ 1) and (notes[i] == notes[j] or (notes[i], notes[j]) in known):
                    left_out[i, j] = True
    similarity = (z @ z.T * tau.exp()).masked_fill(left_out, float("-inf"))
    return cross_entropy(similarity, torch.arange(n) ^ 1)
