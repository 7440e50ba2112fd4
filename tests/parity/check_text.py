"""Categories that notellm generate writes, greedily, against generate() of transformers on the export: the same texts."""
import json
import pathlib
import re
import tempfile

import torch
from common import NOTELLM, Shards, checkpoints, export, load, make_notes, run
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

MOST = 24  # tokens


def decoder(checkpoint, exported):
    """Tokens → text. Of bytes that are no UTF-8, SentencePiece makes other text than the tokenizer.json of its model does."""
    if (checkpoint / "tokenizer.model").exists():
        pieces = SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
        return lambda tokens: pieces.decode([t for t in tokens if not pieces.is_control(t)])
    tokenizer = AutoTokenizer.from_pretrained(exported)
    return lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    notes = make_notes(folder)
    for model_name, (config, checkpoint) in checkpoints(folder).items():
        lines = run(NOTELLM, "generate", config, "--checkpoint", checkpoint, "--max-tokens", MOST).splitlines()
        ours = [json.loads(line) for line in lines]
        assert [line["id"] for line in ours] == [note["id"] for note in notes]
        exported, shards = export(checkpoint), Shards(config)
        model, decode = load(exported), decoder(checkpoint, exported)
        emb, eos = shards.prompt["emb"], shards.prompt["eos"]
        for i, line in enumerate(ours):
            prompt = torch.tensor([shards.before_emb(i) + [emb] + shards.prompt["category_guidance"]])
            tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=MOST,
                                    eos_token_id=eos, pad_token_id=eos)[0, prompt.shape[1]:].tolist()
            text = " ".join(word for word in re.split("[ \t\n\v\f\r]", decode(tokens)) if word)  # white space is folded
            assert (line["category"], line["ended"]) == (text, tokens[-1] == eos), (model_name, line, text, tokens)
        ended = sum(line["ended"] for line in ours)
        print(f"  {model_name}: {len(ours)} texts equal, {ended} of them ended by themselves; the first: {ours[0]['category']!r}")
