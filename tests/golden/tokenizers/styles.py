"""The styles of tokenizer.json that are compared with the `tokenizers` library: how each is put together and trained.

Also the texts that tokenizers stumble on, as bytes: some are no UTF-8. The library reads text alone, so that it gets
them as bytes.decode("utf-8", "replace") makes them.
"""

import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3_REGEX = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2_REGEX = LLAMA3_REGEX.replace(r"\p{N}{1,3}", r"\p{N}")


def trained_bytes(texts, size, specials, lacks=()):
    """A byte-level BPE; the caller has set the pre-tokenizer."""

    def train(tokenizer):
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=specials, show_progress=False,
                                      initial_alphabet=sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(lacks)))
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer

    return train


def before_text(tokenizer, token):
    return processors.TemplateProcessing(single=f"{token} $A", pair=f"{token} $A {token} $B",
                                         special_tokens=[(token, tokenizer.token_to_id(token))])


def gpt2(texts, size):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    trained_bytes(texts, size, ["<|endoftext|>"])(t)
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    return t, {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}


def gpt2_prefix(texts, size):
    """As RoBERTa's: with a space before the text; and added tokens that are not special, of every kind."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    t.decoder = decoders.ByteLevel()
    trained_bytes(texts, size, ["<|endoftext|>", "[EMB]"])(t)
    t.add_tokens([AddedToken("<tool>", lstrip=True, normalized=False), AddedToken("<call>", rstrip=True, normalized=False),
                  AddedToken("library", single_word=True, normalized=True), AddedToken("   ", normalized=False),
                  AddedToken("<too", normalized=False), AddedToken("naïve", normalized=True)])
    return t, {"eos_token": {"content": "<|endoftext|>"}}


def llama3(texts, size):
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3_REGEX), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    trained_bytes(texts, size, [])(t)
    t.add_special_tokens([AddedToken("<|begin_of_text|>", special=True), AddedToken("<|end_of_text|>", special=True)])
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), before_text(t, "<|begin_of_text|>")])
    return t, {"eos_token": "<|end_of_text|>", "bos_token": "<|begin_of_text|>"}


def qwen2(texts, size):
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2_REGEX), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    trained_bytes(texts, size, [])(t)
    t.add_special_tokens([AddedToken("<|endoftext|>", special=True), AddedToken("<|im_start|>", special=True)])
    t.add_tokens([AddedToken("<tool_call>", normalized=False)])
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    return t, {"eos_token": "<|endoftext|>", "bos_token": None, "add_bos_token": False}


def letter(byte):
    """How byte-level vocabularies write it."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return chr(byte if byte in shown else 256 + [b for b in range(256) if b not in shown].index(byte))


def smollm(texts, size):
    """SmolLM's vocabulary lacks 21 bytes, which it drops."""
    lacks = {letter(b) for b in (0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100))}
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.ByteLevel()
    trained_bytes(texts, size, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], lacks)(t)
    return t, {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}


def with_byte_pieces(texts, size, prepare):
    """A BPE with byte fallback of texts as `prepare` makes them, each word a piece."""
    t = Tokenizer(models.BPE(unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=specials, show_progress=False, limit_alphabet=90)
    t.train_from_iterator(texts, trainer)
    state = __import__("json").loads(t.to_str())
    state["added_tokens"] = [a for a in state["added_tokens"] if a["content"] in ("<unk>", "<s>", "</s>")]
    state["model"].update(byte_fallback=True, fuse_unk=True)
    for half in ("▁", "▁▁"):  # runs of spaces, as LLaMA's has them
        state["model"]["vocab"][2 * half] = len(state["model"]["vocab"])
        state["model"]["merges"].insert(0, [half, half])
    t = Tokenizer.from_str(__import__("json").dumps(state))
    prepare(t)
    t.post_processor = before_text(t, "<s>")
    return t, {"eos_token": "</s>", "bos_token": "<s>", "add_bos_token": True, "add_eos_token": False}


def llama2(texts, size):
    def prepare(t):
        t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        t.pre_tokenizer = None
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                       decoders.Strip(" ", 1, 0)])

    return with_byte_pieces(texts, size, prepare)


def metaspace(texts, size):
    """As transformers writes LLaMA's with legacy: false."""

    def prepare(t):
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                       decoders.Strip(" ", 1, 0)])

    return with_byte_pieces(texts, size, prepare)


def unknown(texts, size):
    """Without byte fallback: what is not in the vocabulary is unknown. Words apart, Metaspace always."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    t.decoder = decoders.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<unk>", "</s>"], show_progress=False,
                                  limit_alphabet=90)
    t.train_from_iterator(texts, trainer)
    t.add_special_tokens([AddedToken("[EMB]", special=True)])
    t.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>",
                                                     special_tokens=[("</s>", t.token_to_id("</s>"))])
    return t, {"eos_token": "</s>"}


STYLES = {style.__name__: style for style in
          (gpt2, gpt2_prefix, llama3, qwen2, smollm, llama2, metaspace, unknown)}


def stumbling_texts():
    """Some hundred texts, as bytes."""
    texts = [
        "", " ", "  ", "\n", "\t", "a", " a", "a ", "  a", "a  b", "a   b", "a \n b", "a \n  b", "a\n\n\nb", "\r\n\r\n x",
        "library", " library", "the library files", "librarylibrary", "library library", "_library", "a library.",
        "Hello, world!", "HELLO WORLD", "it's they're I'VE we'Ll 'tis 'S'T'RE x's'", "'\u017f \u2019s", "don't can't",
        "3 14 159 2653 58979 323846", "1,000.50 €", "v1.2.3-rc4+dfsg", "0x1F 1e-5 ½ ² ٣ ४ Ⅷ ௧",
        "{'title': \"quoted\", 'content': {}}", "if (a[i] != b) {\n\treturn x->y(0);\n}\n", "// ====\n/* --- */ #!/bin/sh\n",
        "<s> </s> <unk> [EMB] <0x0A> <|endoftext|> <|begin_of_text|> <|im_start|>", "x<|endoftext|>y",
        "<tool>", "a <tool> b", "a  <tool>  <call>  b", "<call> x", "<too", "<tool", "<tool_call>x</tool_call>", "a<tool_call> b",
        "naïve", "naïve", "a naïve test", "cafe\u0301 caf\u00e9", "\u1100\u1161\u11a8 \uac01", "A\u030a \u212b \u00c5",
        "\u0301 \u0301a", "q\u0323\u0307 q\u0307\u0323", "\u0344 \u2126 \u2000 \ufb01", "ﷺ ﬀ ß ſ İ ı",
        "笔记：{\"标题\":\"跑步\",\"话题\":\"运动，健康\"}", "中文没有空格的一句话，标点也是全角。", "日本語のテキスト カタカナ", "한국어 문장입니다.",
        "ภาษาไทยไม่มีช่องว่าง", "नमस्ते दुनिया", "مرحبا بالعالم 123", "שלום עולם", "Привет, мир!", "Ελληνικά",
        "😀", "😀😀 😀", "👩‍👩‍👧‍👦 family", "👍🏽 🇩🇪🇫🇷", "❤️‍🔥 x", "\u200d\u200b\ufeff\u00ad\u2060", "\u00a0x\u00a0\u00a0y\u3000z",
        "\u2028\u2029\u0085\u000b\u000c\u001c x", "\u180e x\u180ey", "▁ ▁▁x ▁a", "Ġ Ċ Ā", "\ufffd \ufffe \U0010ffff",
        "\u0000", "a\u0000b", "\u007f\u0080\u0091", "\U00020000\U0002a6d6 𝒳𝓎", "x" * 40, "x" * 300, " " * 40, " " * 300,
        "\n" * 100, "\t" * 17, "a " * 150, "é" * 120, "😀" * 60, "9" * 90, "!" * 90, "ab" * 200, "=" * 64 + "\n" + "-" * 64,
        "word " * 400, "https://www.example.org/a/b?c=d&e=f#g", "C++ & C# <html> &amp; \\n \\\\", "tab\tsep\tvalues\r\n",
        "e.g. i.e. U.S.A. Mr. O'Neill", "…—–“”‘’«»", "a/b\\c|d~e`f^g", "$100 £5 ¥6 50%", "\u0004", "\u0004 a\u0004 \u0004\u0006b\u0013", "x \U00040000y", "load ▁ ▂▃ 5%", "x▁ y▁  z ▁ ",
        "\u202eright\u202c to left",
    ]
    # Combining marks out of order: of Unicode 1, 10, 13, 14.
    texts += ["e\u0301\u0327", "e\u0d3b\u0301\u0327", "e\u1abf\u0301", "e\u0301\u0898\u0327"]
    texts = [text.encode() for text in texts]
    texts += [b"\xff", b"a\xffb", b"\xc3", b"\xc3(", b"\xe7\xac", b"\xe7\xac x", b"\xf0\x9f\x98", b"\xf0\x9f\x98 y\xf0\x9f",
              b"\xed\xa0\x80", b"\xc0\xaf", b"\xf5\x80\x80\x80", b"\x80\x80\x80", b"ok \xe2\x28\xa1 ok", b"\xfe\xfe\xff\xff",
              "中".encode()[:2] + "文".encode(), b"\xf8\x88\x80\x80\x80", b"e\xcc", b"e\xcc\x81\xcc"]
    return texts


def random_texts(count, seed):
    """Texts of many kinds of characters side by side, as bytes: words, white space, scripts, emoji, code, broken UTF-8."""
    rng = random.Random(seed)
    parts = ["library", "the", "Debian", "it's", "WE'LL", "naïve", "e\u0301", "q\u0307\u0323", "笔记", "标题：", "，", "한국", "ภาษา",
             "नमस्ते", "مرحبا", "😀", "👩‍👩‍👧", "👍🏽", "🇩🇪", "{", "}", "();", "->", "==", "\"", "'", "123", "4567", "٣", "½", "<tool>",
             "<call>", "<too", "<tool_call>", "</s>", "<|endoftext|>", "[EMB]", "▁", "Ġ", "\u00a0", "\u3000", "\u0085", "\u200d",
             " ", " ", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "=" * 9, "x" * 17, "\u1100\u1161", "\ufb01", "K", "\u212a"]
    texts = []
    for _ in range(count):
        kind = rng.random()
        if kind < 0.6:
            text = "".join(rng.choice(parts) for _ in range(rng.randint(1, 30))).encode()
        elif kind < 0.8:
            text = "".join(chr(rng.choice((rng.randint(1, 0x7f), rng.randint(0x80, 0x7ff), rng.randint(0x800, 0xd7ff),
                                           rng.randint(0xe000, 0x1ffff)))) for _ in range(rng.randint(1, 20))).encode()
        elif kind < 0.9:
            text = "".join(chr(rng.randint(0x4e00, 0x9fa5)) for _ in range(rng.randint(5, 120))).encode()
        else:
            text = bytearray("".join(rng.choice(parts) for _ in range(rng.randint(1, 12))).encode())
            for _ in range(3):
                text[rng.randrange(len(text))] = rng.randrange(256)
            text = bytes(text)
        texts.append(text)
    return texts
