"""Tiny tokenizers of every kind, as the files that checkpoints ship: deterministic, built by hand from a word list."""

from __future__ import annotations

import base64
import struct
from typing import Any

WORDS = (
    " the", " and", " of", " to", " in", " is", " world", " Hello", "Hello", "hello", " test", "ing", "tion", " jumps",
    " quick", "are", "'s", "'t", "'re", "'ll", "'S", "123", "1234", "999", "2024", "    ", "  ", "\n\n", "\n", "\t\t",
    "!!", "??", "...", "--", "==", "(a", "()", " (", ") ", ", ", ". ", "://", "def", " return", " int", "_case", "Case",
    "über", "é", " ü", "ая", " не", "的", "我想", "。", "の", "안녕", "ह", "न", "م", " ש", "😀", "🙂", "½", "th", "er",
    "e1", "a5", "x2", "ab", "aaaa", "mixed", " слова", " text", "id", "id_", "iPhone", "USD", "$9",
)  # fmt: skip
"""Some cross the borders that pre-tokenizers draw, so that different pre-tokenizers give different tokens."""


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins, by byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {byte: chr(byte) for byte in printable}
    spare = iter(range(256, 512))
    return [table[byte] if byte in table else chr(next(spare)) for byte in range(256)]


def merges_of(words: list[list[str]]) -> list[tuple[str, str]]:
    """Merge each word from the left, one symbol at a time."""
    merges: dict[tuple[str, str], None] = {}
    for symbols in words:
        made = symbols[0]
        for symbol in symbols[1:]:
            merges[made, symbol] = None
            made += symbol
    return list(merges)


def added(content: str, number: int, *, special: bool = True) -> dict[str, Any]:
    """An entry of tokenizer.json's added_tokens."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, "special": special}


def tokenizer_json(model: dict[str, Any], added_tokens: list[dict[str, Any]], **pipeline: Any) -> dict[str, Any]:
    """The frame of a tokenizer.json."""
    parts = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return (
        {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added_tokens}
        | parts
        | pipeline
        | {"model": model}
    )


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"


def split_on(expression: str) -> dict[str, Any]:
    """A pre-tokenizer that splits by a regular expression before it maps bytes."""
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL | {"use_regex": False}]}


PRE_TOKENIZERS: dict[str, Any] = {
    "gpt-2": BYTE_LEVEL,
    "llama-bpe": split_on(_WORDS + r"\p{N}{1,3}" + _TAIL),
    "qwen2": split_on(_WORDS + r"\p{N}" + _TAIL),
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]},
}


def byte_level_bpe(
    pre: str | dict[str, Any] = "gpt-2", specials: tuple[str, ...] = ("<|endoftext|>",), **model: Any
) -> dict[str, Any]:
    """A tokenizer.json of a byte-level BPE; special tokens come last."""
    alphabet = byte_alphabet()
    merges = merges_of([[alphabet[byte] for byte in word.encode()] for word in WORDS])
    tokens = list(dict.fromkeys([*alphabet, *(left + right for left, right in merges)]))
    settings = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: number for number, token in enumerate(tokens)},
        "merges": [list(pair) for pair in merges],
    }
    return tokenizer_json(
        settings | model,
        [added(content, len(tokens) + number) for number, content in enumerate(specials)],
        pre_tokenizer=PRE_TOKENIZERS[pre] if isinstance(pre, str) else pre,
        decoder=BYTE_LEVEL,
    )


CONTROL = ("<unk>", "<s>", "</s>")


def spm_pieces() -> list[tuple[str, float, int]]:
    """The pieces of a SentencePiece BPE with byte fallback: text, score, type."""
    words = [list(word.replace(" ", "▁")) for word in WORDS if "\n" not in word and "\t" not in word]
    merges = merges_of(words)
    merged = list(dict.fromkeys(left + right for left, right in merges))
    characters = list(dict.fromkeys(["▁", *map(chr, range(33, 127)), *(symbol for word in words for symbol in word)]))
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [(text, -float(rank), 1) for rank, text in enumerate(merged)]
    return pieces + [(text, -float(len(merged) + rank), 1) for rank, text in enumerate(characters)]


def spm_json(*, prefix: bool = True, extra: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    """The tokenizer.json that belongs to `spm_pieces`: every split of a piece into two pieces is a merge."""
    pieces = spm_pieces()
    numbers = {text: number for number, (text, _, _) in enumerate(pieces)}
    merges = [
        (score, text[:cut], text[cut:])
        for text, score, kind in pieces
        if kind == 1
        for cut in range(1, len(text))
        if text[:cut] in numbers and text[cut:] in numbers
    ]
    merges.sort(key=lambda merge: (-merge[0], numbers[merge[1]], numbers[merge[2]]))
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    if prefix:
        steps.insert(0, {"type": "Prepend", "prepend": "▁"})
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    return tokenizer_json(
        {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": numbers,
            "merges": [[left, right] for _, left, right in merges],
        },
        [*(added(text, number) for number, text in enumerate(CONTROL)), *extra],
        normalizer={"type": "Sequence", "normalizers": steps},
        post_processor=template(("<s>", 1), None),
        decoder={"type": "Sequence", "decoders": decoders},
    )


def template(first: tuple[str, int] | None, last: tuple[str, int] | None) -> dict[str, Any]:
    """A post-processor that adds tokens around a text and between two."""
    middle = [("A", 0), ("B", 0)]

    def part(token: tuple[str, int] | None) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": token[0], "type_id": 0}}] if token else []

    def text(name: str) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": 0}}

    specials = {text: {"id": text, "ids": [number], "tokens": [text]} for text, number in filter(None, (first, last))}
    return {
        "type": "TemplateProcessing",
        "single": [*part(first), text(middle[0][0]), *part(last)],
        "pair": [*part(first), text("A"), *part(last), *([] if last else part(first)), text("B"), *part(last)],
        "special_tokens": specials,
    }


def spm_model(pieces: list[tuple[str, float, int]], *, kind: int = 2, prefix: bool = True) -> bytes:
    """A tokenizer.model: the protocol buffer that SentencePiece writes."""

    def field(number: int, wire: int, body: bytes) -> bytes:
        return varint(number << 3 | wire) + body

    def block(number: int, body: bytes) -> bytes:
        return field(number, 2, varint(len(body)) + body)

    data = b""
    for text, score, sort in pieces:
        piece = block(1, text.encode()) + field(2, 5, struct.pack("<f", score)) + field(3, 0, varint(sort))
        data += block(1, piece)
    data += block(2, field(3, 0, varint(kind)) + field(35, 0, varint(1)))
    return data + block(3, block(1, b"identity") + field(3, 0, varint(prefix)) + field(4, 0, varint(0)))


def varint(number: int) -> bytes:
    """A protocol buffer's variable-length integer."""
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*data, number])


BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def wordpiece_json(*, lowercase: bool = True) -> dict[str, Any]:
    """A tokenizer.json of a BERT WordPiece."""
    words = [word.strip().lower() if lowercase else word.strip() for word in WORDS]
    characters = [chr(number) for number in range(33, 127)] + [*"éüаяне的我想。の안녕हनمשñçß½"]
    characters = [char for char in characters if not (lowercase and char != char.lower())]
    tokens = dict.fromkeys([*BERT_SPECIALS, *characters, *(f"##{char}" for char in characters if char.isalnum())])
    tokens |= dict.fromkeys(word for word in words if word.isalnum())
    tokens |= dict.fromkeys(["##ing", "##tion", "##er", "##s"])
    numbers = {token: number for number, token in enumerate(tokens)}
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    return tokenizer_json(
        {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": numbers,
        },
        [added(text, number) for number, text in enumerate(BERT_SPECIALS)],
        normalizer=normalizer | {"strip_accents": None, "lowercase": lowercase},
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=template(("[CLS]", 2), ("[SEP]", 3)),
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )


ROBERTA_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")


def unigram_json() -> dict[str, Any]:
    """A tokenizer.json of an XLM-RoBERTa Unigram, with a few normalization rules."""
    words = [word.replace(" ", "▁") for word in WORDS if word.rfind(" ") < 1 and word.isprintable()]
    characters = list(dict.fromkeys(["▁", *map(chr, range(33, 127)), *(char for word in words for char in word)]))
    pieces = [[text, 0.0] for text in ROBERTA_SPECIALS]
    pieces += [[text, -2.0 - 0.01 * rank] for rank, text in enumerate(dict.fromkeys(words)) if len(text) > 1]
    pieces += [[text, -6.0 - 0.01 * rank] for rank, text in enumerate(characters)]
    pieces.append(["<mask>", 0.0])
    last = len(pieces) - 1
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    rules = {"type": "Precompiled", "precompiled_charsmap": charsmap(dict.fromkeys("\n\t\r\f\v", " "))}
    return tokenizer_json(
        {"type": "Unigram", "unk_id": 3, "vocab": pieces, "byte_fallback": False},
        [*(added(text, number) for number, text in enumerate(ROBERTA_SPECIALS)), added("<mask>", last)],
        normalizer=rules,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        post_processor=template(("<s>", 0), ("</s>", 2)),
        decoder=metaspace,
    )


def charsmap(rules: dict[str, str]) -> str:
    """Compile normalization rules for single ASCII characters, as tokenizer.json carries them.

    A double-array trie whose root branches at 256, then the replacements, each ended by a NUL. A unit holds its
    label in the low byte, whether a leaf follows in bit 8, and the distance to its children from bit 10 on.
    """
    trie = [0] * 1024
    trie[0] = 256 << 10
    texts = b""
    for index, (character, replacement) in enumerate(rules.items()):
        position, leaf = 256 ^ ord(character), 512 + index
        trie[position] = ord(character) | 1 << 8 | (position ^ leaf) << 10
        trie[leaf] = len(texts) | 1 << 31
        texts += replacement.encode() + b"\0"
    units = struct.pack(f"<{len(trie)}I", *trie)
    return base64.b64encode(struct.pack("<I", len(units)) + units + texts).decode()
