"""tokenizer.json and its companions from a GGUF's vocabulary.

A GGUF names its pre-tokenizer instead of writing it down, so only the named ones that are known here come back.
Invariant: what is written reads text as llama.cpp does with the file; where that cannot be promised, nothing is.
"""

from __future__ import annotations

from typing import Any

import msgspec
from lathe.quantize.convert.vocabulary.model import TokenType
from lathe.quantize.convert.vocabulary.pieces import Piece, PieceModel
from lathe.quantize.convert.vocabulary.pretokenizers import BY_PATTERN
from lathe.quantize.convert.vocabulary.reference import added_token, reference_json
from lathe.quantize.gguf.header import GgufHeader

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "pad": "padding",
    "sep": "seperator",
    "mask": "mask",
}
"""Role in tokenizer_config.json -> in GGUF's keys (whose spelling is its own)."""


def tokenizer_files(header: GgufHeader) -> tuple[dict[str, bytes], list[str]]:
    """Make the tokenizer's files by name, and say what could not be made."""
    tokens, types = header.array("tokenizer.ggml.tokens"), header.array("tokenizer.ggml.token_type")
    if tokens is None or types is None:
        return {}, ["the file has no vocabulary: the checkpoint has no tokenizer"]
    texts, kinds = tokens.tolist(), types.tolist()
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if header.architecture != "bert":  # decoders refuse the segments that transformers makes unasked
        settings["model_input_names"] = ["input_ids", "attention_mask"]
    for role, key in _ROLES.items():
        number = header.number(f"tokenizer.ggml.{key}_token_id")
        if number is not None and number < len(texts):
            settings[f"{role}_token"] = texts[number]
    files = {"tokenizer_config.json": settings}
    documents = {name: msgspec.json.format(msgspec.json.encode(content)) for name, content in files.items()}
    if (template := header.text("tokenizer.chat_template")) is not None:
        documents["chat_template.jinja"] = template.encode()
    document = _document(header, texts, kinds)
    if document is None:
        pre = header.text("tokenizer.ggml.pre")
        return documents, [f"the tokenizer ({header.text('tokenizer.ggml.model')}, {pre}) cannot be written down"]
    document["post_processor"] = _template(header, settings)
    documents["tokenizer.json"] = msgspec.json.encode(document)
    return documents, []


def _document(header: GgufHeader, texts: list[str], kinds: list[int]) -> dict[str, Any] | None:
    """Write the vocabulary as a tokenizer.json; None for a kind that is not known here."""
    model = header.text("tokenizer.ggml.model")
    pre = header.text("tokenizer.ggml.pre") or "default"
    if model == "gpt2" and (steps := _pre_tokenizer(pre)) is not None:
        return _byte_level(header, texts, kinds, steps, pre)
    scores = header.array("tokenizer.ggml.scores")
    if model == "llama" and scores is not None:
        prefix = header.metadata.get("tokenizer.ggml.add_space_prefix") is not False
        pieces = [Piece(*facts) for facts in zip(texts, scores.tolist(), kinds, strict=True)]
        document = reference_json(PieceModel(pieces=pieces, add_prefix=prefix), [])
        decoders: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        if prefix:  # the blank that was put before the text
            decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        return document | {"decoder": {"type": "Sequence", "decoders": decoders}}
    if model == "bert":
        return _wordpiece(header, texts, kinds)
    return None


def _pre_tokenizer(name: str) -> dict[str, Any] | None:
    """Write a pre-tokenizer down by its name."""
    if name == "gpt-2":
        return _BYTE_LEVEL
    if name == "smollm":
        return {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
        }
    expression = next((pattern for pattern, known in BY_PATTERN.items() if known == name), None)
    if expression is None:
        return None
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _BYTE_LEVEL | {"use_regex": False}]}


def _byte_level(
    header: GgufHeader, texts: list[str], kinds: list[int], steps: dict[str, Any], pre: str
) -> dict[str, Any]:
    merges = header.array("tokenizer.ggml.merges")
    return {
        "version": "1.0",
        "added_tokens": _added(texts, kinds),
        "pre_tokenizer": steps,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "ignore_merges": pre == "llama-bpe",
            "vocab": {text: number for number, text in enumerate(texts) if kinds[number] == TokenType.NORMAL},
            "merges": merges.tolist() if merges is not None else [],
        },
    }


def _wordpiece(header: GgufHeader, texts: list[str], kinds: list[int]) -> dict[str, Any]:
    def written(text: str, kind: int) -> str:
        if kind == TokenType.CONTROL:
            return text
        return text.removeprefix("▁") if text.startswith("▁") else f"##{text}"

    unknown = header.number("tokenizer.ggml.unknown_token_id")
    lowercase = header.metadata.get("tokenizer.ggml.normalizer.lowercase") is not False
    return {
        "version": "1.0",
        "added_tokens": _added(texts, kinds),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": texts[unknown] if unknown is not None else "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {
                written(text, kind): number for number, (text, kind) in enumerate(zip(texts, kinds, strict=True))
            },
        },
    }


def _added(texts: list[str], kinds: list[int]) -> list[dict[str, Any]]:
    matched = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    return [
        added_token(number, text, kinds[number] != TokenType.USER_DEFINED)
        for number, text in enumerate(texts)
        if kinds[number] in matched
    ]


def _template(header: GgufHeader, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Say which tokens surround a text."""
    encoder = header.text("tokenizer.ggml.model") == "bert"
    model_adds = header.text("tokenizer.ggml.model") == "llama" or header.text("tokenizer.ggml.pre") == "llama-bpe"
    ends: dict[str, dict[str, Any] | None] = {}
    specials: dict[str, Any] = {}
    for role, always in (("bos", encoder or model_adds), ("eos", encoder)):
        added = header.metadata.get(f"tokenizer.ggml.add_{role}_token", always)
        text = settings.get(f"{role}_token")
        number = header.number(f"tokenizer.ggml.{role}_token_id")
        ends[role] = None
        if added and isinstance(text, str) and number is not None:
            ends[role] = {"SpecialToken": {"id": text, "type_id": 0}}
            specials[text] = {"id": text, "ids": [number], "tokens": [text]}
    if not specials:
        return None
    first, last = ([part] if part else [] for part in (ends["bos"], ends["eos"]))
    # llama.cpp knows the first segment only, but the pairs of a checkpoint's rerankers have two.
    segment = int(encoder and (header.number("tokenizer.ggml.token_type_count") or 0) > 1)
    one, two = ({"Sequence": {"id": name, "type_id": number}} for name, number in (("A", 0), ("B", segment)))
    middle = last or first
    end = [{"SpecialToken": part["SpecialToken"] | {"type_id": segment}} for part in last]
    return {
        "type": "TemplateProcessing",
        "single": [*first, one, *last],
        "pair": [*first, one, *middle, two, *end],
        "special_tokens": specials,
    }
