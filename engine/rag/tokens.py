"""Counting tokens as the embedder will, without asking it: its tokenizer is read from its own files.

Splitting a document asks for thousands of counts, and a round trip to the model worker for each costs more than the
embedding. Invariant: special tokens are not counted; whoever makes a budget reserves them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lathe.engine.rag.splitting import Count
from lathe.quantize.gguf.header import read_header

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def local_count(path: Path, tokenizer: str | None) -> Count | None:
    """A counter made from a model's files; None where only the model itself can tell.

    `tokenizer` is what the model's card calls it.
    """
    folder = path if path.is_dir() else path.parent
    if (path.is_dir() or path.suffix == ".onnx") and (file := folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        loaded = Tokenizer.from_file(str(file))
        loaded.no_truncation()
        loaded.no_padding()
        return partial(_count, loaded)
    if path.suffix == ".gguf" and tokenizer == "bert":
        return partial(_count, _wordpiece(path))
    return None


def _count(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    return [len(encoded) for encoded in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def _wordpiece(path: Path) -> Tokenizer:
    """WordPiece from a GGUF, where the pieces that begin a word are marked instead of those that go on with one."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    metadata = read_header(path).metadata
    tokens: list[str] = _items(metadata["tokenizer.ggml.tokens"])
    vocabulary = {_piece(token): number for number, token in enumerate(tokens)}
    unknown = _piece(tokens[_number(metadata.get("tokenizer.ggml.unknown_token_id"), 100)])
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=100))
    lowercase = metadata.get("tokenizer.ggml.normalizer.lowercase", True) is not False
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _piece(token: str) -> str:
    if token.startswith("▁"):
        return token[1:]
    return token if token.startswith("[") and token.endswith("]") else f"##{token}"


def _items(value: Any) -> list[str]:
    return list(value.tolist() if hasattr(value, "tolist") else value)


def _number(value: object, default: int) -> int:
    return value if isinstance(value, int) else default


def fit(text: str, room: int, count: Callable[[Sequence[str]], list[int]]) -> str:
    """The longest beginning of a text that has at most `room` tokens, cut at white space if a word fits before it."""

    def tokens(end: int) -> int:
        return count([text[:end]])[0]

    if tokens(len(text)) <= room:
        return text
    kept = ""
    for edges in ([i for i, character in enumerate(text) if character.isspace()], range(1, len(text))):
        fitting = bisect_right(edges, room, key=tokens)
        kept = text[: edges[fitting - 1]] if fitting else ""
        if kept.strip():
            break
    return kept
