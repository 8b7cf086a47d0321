"""A tokenizer, a chat template and a model that are rules: the scripted workbench's language.

A token is a word with the blank before it; its id is a checksum of its bytes, so ids do not depend on the order in
which texts were seen. Invariant: `detokenize(tokenize(x)) == x` for every text tokenized before.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence

from lathe.engine.errors import DataError
from lathe.engine.generation import (
    Embeddings,
    GenerationRequest,
    Message,
    RenderedPrompt,
    Score,
    TokenLogprob,
)

SPECIAL = {"<s>": 1, "<|im_end|>": 2, "<|im_start|>": 3}
_PIECES = re.compile(r" ?[^\W_]+| ?[^\w\s]|_+|\s", re.UNICODE)
_WITH_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL)) + "|" + _PIECES.pattern, re.UNICODE)
_SEEN: dict[int, str] = {number: text for text, number in SPECIAL.items()}
DIMENSIONS = 8

ANSWER = (
    "The **KV cache** stores the keys and values of tokens already read, so each new token computes only its own.\n\n"
    "- It trades memory for speed.\n- It grows linearly with the context, the layers and the heads.\n\n"
    "```python\nbytes = 2 * layers * kv_heads * head_dim * context * 2\n```\n"
)


def pieces(text: str, special: bool = False) -> list[str]:
    """Split a text into token texts."""
    return (_WITH_SPECIAL if special else _PIECES).findall(text)


def tokenize(text: str, special: bool = False, bos: bool = False) -> list[int]:
    """Text to ids above 255; ids below are special."""
    ids = [SPECIAL["<s>"]] if bos else []
    for piece in pieces(text, special):
        number = SPECIAL[piece] if special and piece in SPECIAL else 256 + zlib.crc32(piece.encode()) % (1 << 30)
        _SEEN[number] = piece
        ids.append(number)
    return ids


def detokenize(tokens: Sequence[int]) -> str:
    """Ids to text; an id that no text produced is refused."""
    try:
        return "".join(_SEEN[number] for number in tokens)
    except KeyError as error:
        raise DataError(f"token {error.args[0]} is outside the vocabulary") from error


def render(messages: Sequence[Message], stop: tuple[str, ...] = ("<|im_end|>",)) -> RenderedPrompt:
    """ChatML."""
    text = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in messages) + "<|im_start|>assistant\n"
    return RenderedPrompt(text, tuple(tokenize(text, special=True)), "c0ffee" * 10 + "c0ff", stop)


def prompt_of(request: GenerationRequest) -> tuple[str, tuple[int, ...]]:
    """The text and ids that a request would put into the context."""
    if request.messages:
        rendered = render(request.messages)
        return rendered.text, rendered.tokens
    if request.prompt is not None:
        return request.prompt, tuple(tokenize(request.prompt, request.special))
    tokens = request.tokens or ()
    return detokenize(tokens), tokens


def logprob(token: int, text: str, alternatives: int = 0) -> TokenLogprob:
    """A log-probability that depends on the token alone."""
    own = -(token % 100) / 50
    others = tuple((number, _SEEN[number], own - 1 - rank) for rank, number in enumerate(sorted(SPECIAL.values())))
    top = ((token, text, own), *others)[:alternatives]
    return TokenLogprob(token, text, own, text.encode(), top)


def score(continuation: str | Sequence[int]) -> Score:
    """Sum of the tokens' log-probabilities."""
    ids = tokenize(continuation) if isinstance(continuation, str) else list(continuation)
    each = tuple(-(number % 100) / 50 for number in ids)
    return Score(sum(each), len(ids), sum(each) > -1, each)


def embed(texts: Sequence[str], normalize: bool = True) -> Embeddings:
    """Vectors that depend on each text alone."""
    rows = []
    for text in texts:
        row = [zlib.crc32(f"{axis}{text}".encode()) / 2**31 - 1 for axis in range(DIMENSIONS)]
        length = sum(x * x for x in row) ** 0.5 if normalize else 1.0
        rows.append([x / length for x in row])
    flat = [x for row in rows for x in row]
    tokens = sum(len(tokenize(text)) for text in texts)
    return Embeddings(struct.pack(f"<{len(flat)}f", *flat), len(rows), DIMENSIONS, tokens)
