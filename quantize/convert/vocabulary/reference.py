"""A tokenizer.json made from a tokenizer.model, for checkpoints that ship only the latter.

It gives the `tokenizers` library the same pieces in its own terms (merges by rank instead of scores), so that a
conversion has an independent original to be compared with. Invariant: it is never written into a GGUF.
"""

from __future__ import annotations

from typing import Any

from lathe.quantize.convert.vocabulary.model import TokenType
from lathe.quantize.convert.vocabulary.pieces import PieceModel
from lathe.quantize.convert.vocabulary.source import AddedToken

_MATCHED = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)


def reference_json(model: PieceModel, added: list[AddedToken]) -> dict[str, Any]:
    """Write a SentencePiece BPE as a tokenizer.json."""
    vocab = {piece.text: number for number, piece in enumerate(model.pieces)}
    tokens = {
        number: added_token(number, piece.text, piece.type != TokenType.USER_DEFINED)
        for number, piece in enumerate(model.pieces)
        if piece.type in _MATCHED
    }
    tokens |= {token.id: added_token(token.id, token.content, token.special) for token in added}
    unknown = next((piece.text for piece in model.pieces if piece.type == TokenType.UNKNOWN), None)
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    if model.add_prefix:
        steps.insert(0, {"type": "Prepend", "prepend": "▁"})
    return {
        "version": "1.0",
        "added_tokens": list(tokens.values()),
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": any(piece.type == TokenType.BYTE for piece in model.pieces),
            "vocab": vocab,
            "merges": _merges(model, vocab),
        },
    }


def _merges(model: PieceModel, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the best piece first."""
    found = [
        (-piece.score, vocab[piece.text[:cut]], vocab[piece.text[cut:]], piece.text, cut)
        for piece in model.pieces
        if piece.type == TokenType.NORMAL
        for cut in range(1, len(piece.text))
        if piece.text[:cut] in vocab and piece.text[cut:] in vocab
    ]
    found.sort()
    return [(text[:cut], text[cut:]) for _, _, _, text, cut in found]


def added_token(number: int, content: str, special: bool) -> dict[str, Any]:
    """Write one entry of added_tokens."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": special, **flags}
