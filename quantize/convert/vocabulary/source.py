"""`tokenizer.json` as the converter needs it: tokens by id, added tokens, and the pipeline's settings.

Invariant: ids and texts are checked here once; what the kinds build on them needs no second look.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from lathe.quantize.checkpoint import MAX_TOKENIZER_BYTES, Checkpoint, decode_json, read_bytes, read_json
from lathe.quantize.convert.vocabulary.model import MAX_TOKENS, TokenType
from lathe.quantize.errors import CheckpointError, InputMissing

_PIPELINE = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_NOTHING = msgspec.Raw(b"null")


class AddedToken(msgspec.Struct, frozen=True):
    """A token that is matched in the text before the model sees it."""

    id: int
    content: str
    special: bool = False
    normalized: bool = True


class TokenizerSource(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed tokenizer.json beside the settings of tokenizer_config.json."""

    path: Path
    kind: str
    """`BPE`, `WordPiece`, `Unigram`."""
    tokens: dict[int, str]
    scores: list[float] = []
    """Of the first tokens; only Unigram has them."""
    merges: msgspec.Raw = msgspec.Raw(b"[]")
    """Decoded by who needs them: the largest part of a tokenizer.json."""
    model: dict[str, Any]
    """The model's other settings."""
    added: dict[int, AddedToken]
    pipeline: dict[str, Any]
    """normalizer, pre_tokenizer, post_processor, decoder."""
    settings: dict[str, Any]
    """tokenizer_config.json."""

    @property
    def size(self) -> int:
        """Highest id plus one."""
        return max(self.tokens, default=-1) + 1

    def within(self, size: int) -> TokenizerSource:
        """Leave out added tokens beyond `size`: some were added to a tokenizer and never to its model."""
        added = {number: token for number, token in self.added.items() if number < size}
        gone = self.added.keys() - added.keys()
        tokens = {number: text for number, text in self.tokens.items() if number not in gone}
        return msgspec.structs.replace(self, added=added, tokens=tokens)


def read_tokenizer(checkpoint: Checkpoint) -> TokenizerSource | None:
    """Read tokenizer.json of a checkpoint; None when there is none."""
    path = checkpoint.file("tokenizer.json")
    if path is None:
        return None
    document = decode_json(read_bytes(path, MAX_TOKENIZER_BYTES), dict[str, msgspec.Raw], path)
    model = decode_json(document.get("model", _NOTHING), dict[str, msgspec.Raw] | None, path)
    if model is None:
        raise CheckpointError(f"{path} has no model")
    vocab, merges = model.pop("vocab", _NOTHING), model.pop("merges", msgspec.Raw(b"[]"))
    small = {name: decode_json(raw, Any, path) for name, raw in model.items()}
    tokens, scores = _vocab(vocab, path)
    rest = {name: decode_json(raw, Any, path) for name, raw in document.items() if name in (*_PIPELINE, "added_tokens")}
    added = added_tokens(rest, checkpoint.tokenizer, path)
    return TokenizerSource(
        path=path,
        kind=str(small.get("type") or ("BPE" if merges != b"[]" else "WordPiece")),
        tokens=tokens | {number: token.content for number, token in added.items()},
        scores=scores,
        merges=merges,
        model=small,
        added=added,
        pipeline={part: rest.get(part) for part in _PIPELINE},
        settings=checkpoint.tokenizer,
    )


def _vocab(raw: msgspec.Raw, path: Path) -> tuple[dict[int, str], list[float]]:
    """Read the vocabulary: tokens by id, or scored tokens whose position is the id (Unigram)."""
    if bytes(raw).lstrip()[:1] == b"[":
        pairs = decode_json(raw, list[tuple[str, float]], path)
        return {number: token for number, (token, _) in enumerate(pairs)}, [score for _, score in pairs]
    ids = decode_json(raw, dict[str, int] | None, path)
    if ids is None:
        raise CheckpointError(f"{path} has no vocabulary")
    tokens = {_identity(number, path): token for token, number in ids.items()}
    if len(tokens) != len(ids):
        raise CheckpointError(f"{path} gives two tokens the same id")
    return tokens, []


def need_tokenizer(checkpoint: Checkpoint) -> TokenizerSource:
    """Read tokenizer.json or say that it is missing."""
    source = read_tokenizer(checkpoint)
    if source is None:
        raise InputMissing(
            f"{checkpoint.folder} has no tokenizer.json",
            hint="a model without its tokenizer cannot be used: fetch the tokenizer's files too",
        )
    return source


def padded_tokens(source: TokenizerSource, size: int) -> tuple[list[str], list[int]]:
    """List `size` tokens with their types; ids that the tokenizer leaves out become unused placeholders."""
    if source.size > size:
        raise CheckpointError(
            f"{source.path} has tokens up to id {source.size - 1}, config.json says vocab_size {size}",
            hint="tokenizer and weights belong to different versions of the model",
        )
    texts, types = [f"[PAD{number}]" for number in range(size)], [int(TokenType.UNUSED)] * size
    for number, token in source.tokens.items():
        texts[number], types[number] = token, int(TokenType.NORMAL)
        if (added := source.added.get(number)) is not None:
            control = added.special or looks_special(token)
            types[number] = int(TokenType.CONTROL if control else TokenType.USER_DEFINED)
            if not control:
                texts[number] = token.replace("▁", " ")
    return texts, types


def steps(part: Any) -> Iterator[dict[str, Any]]:
    """Yield the steps of a normalizer, pre-tokenizer or post-processor in order, out of any nesting."""
    pending = [part]
    while pending:
        step = pending.pop(0)
        if not isinstance(step, dict):
            continue
        inner = [step.get(name) for name in ("normalizers", "pretokenizers", "processors")]
        children = [child for group in inner if isinstance(group, list) for child in group]
        if children:
            pending[:0] = children
        else:
            yield step


def looks_special(token: str) -> bool:
    """Tell control tokens that checkpoints forgot to mark as special by their looks."""
    brackets = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    return token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or any(
        token.startswith(start) and token.endswith(end) for start, end in brackets
    )


def added_tokens(document: dict[str, Any], settings: dict[str, Any], path: Path) -> dict[int, AddedToken]:
    """Join the added tokens of both files; tokenizer_config.json wins, as when transformers loads them."""
    try:
        tokens = {token.id: token for token in msgspec.convert(document.get("added_tokens") or [], list[AddedToken])}
        for number, entry in (settings.get("added_tokens_decoder") or {}).items():
            token = msgspec.convert({**entry, "id": int(number)}, AddedToken)
            tokens[token.id] = token
    except (msgspec.ValidationError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} has a malformed added token: {error}") from error
    for token in tokens.values():
        _identity(token.id, path)
    return tokens


def old_added_tokens(checkpoint: Checkpoint) -> dict[int, AddedToken]:
    """Read added_tokens.json, the oldest way to add tokens."""
    path = checkpoint.file("added_tokens.json")
    if path is None:
        return {}
    entries = [{"id": number, "content": content} for content, number in read_json(path).items()]
    return added_tokens({"added_tokens": entries}, {}, path)


def _identity(number: Any, path: Path) -> int:
    if type(number) is not int or not 0 <= number < MAX_TOKENS:
        raise CheckpointError(f"{path} has the token id {number!r:.40}; ids run from 0 to {MAX_TOKENS - 1:,}")
    return number
