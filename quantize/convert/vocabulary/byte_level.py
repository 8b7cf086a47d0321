"""Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM): tokens are bytes written as printable characters, plus merges."""

from __future__ import annotations

from lathe.quantize.checkpoint import decode_json
from lathe.quantize.convert.vocabulary.model import Vocabulary, encoded
from lathe.quantize.convert.vocabulary.pretokenizers import propose
from lathe.quantize.convert.vocabulary.source import TokenizerSource, padded_tokens
from lathe.quantize.errors import CheckpointError


def byte_level(source: TokenizerSource, size: int) -> Vocabulary:
    """Convert a byte-level BPE; `pre` is a proposal until conformance confirms it."""
    texts, types = padded_tokens(source, size)
    return Vocabulary(
        model="gpt2",
        pre=propose(source.pipeline.get("pre_tokenizer")),
        tokens=encoded(texts),
        types=types,
        merges=merge_list(source),
    )


def merge_list(source: TokenizerSource) -> list[str]:
    """Return the merges as GGUF wants them: two tokens with a space between, spaces inside written as `Ġ`."""
    return [
        merge if isinstance(merge, str) else f"{merge[0].replace(' ', 'Ġ')} {merge[1].replace(' ', 'Ġ')}"
        for merge in read_merges(source)
    ]


def read_merges(source: TokenizerSource) -> list[str | tuple[str, str]]:
    """Read the merges, first merge first: as `left right`, or as a pair where a token has a space."""
    merges: list[str | tuple[str, str]] = decode_json(source.merges, list[str | tuple[str, str]], source.path)
    if not merges:
        raise CheckpointError(f"{source.path} has no merges")
    for merge in merges:
        if isinstance(merge, str) and " " not in merge[1:-1]:
            raise CheckpointError(f"{source.path} has a malformed merge: {merge!r:.80}")
    return merges


def joined(merge: str | tuple[str, str]) -> str:
    """Return the token that a merge makes."""
    return merge.replace(" ", "", 1) if isinstance(merge, str) else merge[0] + merge[1]
