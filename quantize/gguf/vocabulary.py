"""Whether a vocabulary can be loaded: tokens unique and short, scores and types that match them, special ids.

Tokens are read in batches and compared by hash, so that a vocabulary of two million costs 16 MB, not 200.
Invariant: an accepted vocabulary does not trip the assertions in llama.cpp's `llama_vocab`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from lathe.quantize.errors import GgufError
from lathe.quantize.gguf.parser import quoted
from lathe.quantize.gguf.types import ValueType
from lathe.quantize.gguf.values import GgufArray, GgufHeader

MAX_TOKEN_BYTES = 4096
_PREFIX = "tokenizer.ggml."

_ITEM_TYPES: dict[str, tuple[ValueType, ...]] = {
    "tokens": (ValueType.STRING,),
    "merges": (ValueType.STRING,),
    "scores": (ValueType.FLOAT32, ValueType.INT32),
    "token_type": (ValueType.INT32,),
    "precompiled_charsmap": (ValueType.UINT8, ValueType.INT8),
}
_BYTE = 6
"""The last of `enum llama_token_type`; llama.cpp has no bytes in WordPiece and aborts on them."""

_IDS = (
    "bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "cls", "mask",
    "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep", "prefix", "suffix", "middle",
)  # fmt: skip
"""`tokenizer.ggml.<name>_token_id`; `seperator` is how the field spells it."""

_DEFAULT_BOS = {"llama": 1, "bert": 101, "gpt2": 11, "plamo2": 1}
_DEFAULT_EOS = {"llama": 2, "gpt2": 11, "t5": 1, "plamo2": 2}
_DEFAULT_SEP = {"bert": 102}
_ADDS = {"llama": ("bos",), "bert": ("bos", "sep"), "t5": ("eos",)}
"""What llama.cpp puts around a text by default, by tokenizer.ggml.model."""


def check_vocabulary(header: GgufHeader) -> None:
    """Raise `GgufError` when the tokenizer's arrays or ids cannot be used; a file without tokens passes."""
    for name, allowed in _ITEM_TYPES.items():
        _check_items(header, _PREFIX + name, allowed)
    for name in _IDS:
        key = f"{_PREFIX}{name}_token_id"
        if header.value_types.get(key, ValueType.UINT32) is not ValueType.UINT32:
            raise _error(header, f"key {key!r} must be of type uint32", "E_GGUF_METADATA")
    for name in ("bos", "eos", "sep"):
        key = f"{_PREFIX}add_{name}_token"
        if header.value_types.get(key, ValueType.BOOL) is not ValueType.BOOL:
            raise _error(header, f"key {key!r} must be of type bool", "E_GGUF_METADATA")
    tokens = header.array(_PREFIX + "tokens")
    if tokens is None:
        return
    if not len(tokens):
        raise _error(header, "the vocabulary has no tokens", "E_GGUF_MODEL")
    _check_tokens(header, tokens)
    _check_parallel(header, len(tokens))
    _check_special(header, len(tokens))
    _check_charsmap(header)


def _check_items(header: GgufHeader, key: str, allowed: tuple[ValueType, ...]) -> None:
    if key not in header.metadata:
        return
    array = header.array(key)
    if array is None or array.items not in allowed:
        names = " or ".join(kind.name.lower() for kind in allowed)
        raise _error(header, f"key {key!r} must be an array of {names}", "E_GGUF_METADATA")


def _check_tokens(header: GgufHeader, tokens: GgufArray) -> None:
    hashes = np.empty(len(tokens), np.int64)
    done = 0
    for batch in _as_loaded(tokens):
        if max(map(len, batch), default=0) > MAX_TOKEN_BYTES:
            index = done + next(i for i, token in enumerate(batch) if len(token) > MAX_TOKEN_BYTES)
            raise _error(header, f"token {index} is longer than {MAX_TOKEN_BYTES:,} bytes", "E_GGUF_LIMIT")
        hashes[done : done + len(batch)] = list(map(hash, batch))
        done += len(batch)
    hashes.sort()
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if suspects:
        _refuse_duplicates(header, tokens, suspects)


def _as_loaded(tokens: GgufArray) -> Iterator[list[bytes]]:
    """Yield the tokens as llama.cpp sees them: C strings, an empty one replaced by a text with its index."""
    done = 0
    for batch in tokens.batches():
        if any(b"\0" in token for token in batch):
            batch = [token.split(b"\0", 1)[0] for token in batch]
        if not all(batch):
            batch = [token or b"[EMPTY_%d]" % (done + index) for index, token in enumerate(batch)]
        done += len(batch)
        yield batch


def _refuse_duplicates(header: GgufHeader, tokens: GgufArray, suspects: set[int]) -> None:
    first: dict[bytes, int] = {}
    index = 0
    for batch in _as_loaded(tokens):
        for token in batch:
            if hash(token) in suspects and first.setdefault(token, index) != index:
                text = quoted(token.decode("utf-8", "replace"))
                raise _error(header, f"token {text} is there twice: {first[token]} and {index}", "E_GGUF_MODEL")
            index += 1


def _check_parallel(header: GgufHeader, count: int) -> None:
    """Scores and types stand beside the tokens, one each."""
    for name in ("scores", "token_type"):
        array = header.array(_PREFIX + name)
        if array is None:
            continue
        if len(array) != count:
            raise _error(header, f"key {array.key!r} has {len(array):,} items for {count:,} tokens", "E_GGUF_MODEL")
        values = array.numpy()
        if name == "scores" and np.isnan(values).any():
            raise _error(header, f"key {array.key!r} has NaN at {int(np.isnan(values).argmax())}", "E_GGUF_MODEL")
        if name == "token_type" and (values.min() < 0 or values.max() > _BYTE):
            raise _error(header, f"key {array.key!r} has a value outside 0 to {_BYTE}", "E_GGUF_MODEL")
        if name == "token_type" and header.text(_PREFIX + "model") == "bert" and _BYTE in values:
            raise _error(header, "a WordPiece vocabulary with byte tokens", "E_GGUF_MODEL")


def _check_special(header: GgufHeader, count: int) -> None:
    """A token that is put around every text must exist; llama.cpp ignores other ids that are out of range."""
    model = header.text(_PREFIX + "model") or ""
    for name, key, defaults in (
        ("bos", "bos_token_id", _DEFAULT_BOS),
        ("eos", "eos_token_id", _DEFAULT_EOS),
        ("sep", "seperator_token_id", _DEFAULT_SEP),
    ):
        added = header.metadata.get(f"{_PREFIX}add_{name}_token", name in _ADDS.get(model, ()))
        candidates = (header.number(_PREFIX + key), defaults.get(model))
        if added and not any(number is not None and number < count for number in candidates):
            raise _error(header, f"the tokenizer adds its {name} token, but there is none", "E_GGUF_MODEL")


def _check_charsmap(header: GgufHeader) -> None:
    """The map starts with the size of its first part, which must leave room for the second."""
    array = header.array(_PREFIX + "precompiled_charsmap")
    if array is None:
        return
    data = array.numpy().tobytes()
    if len(data) < 4 or (size := int.from_bytes(data[:4], "little")) % 4 or size + 4 >= len(data) or data[-1]:
        raise _error(header, f"key {array.key!r} is not a character map", "E_GGUF_MODEL")


def _error(header: GgufHeader, message: str, code: str) -> GgufError:
    return GgufError(f"{header.path}: {message}", code=code)
