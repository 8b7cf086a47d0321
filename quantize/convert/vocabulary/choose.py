"""Which kind of vocabulary a checkpoint has."""

from __future__ import annotations

from lathe.quantize.checkpoint import Checkpoint
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.vocabulary.byte_level import byte_level
from lathe.quantize.convert.vocabulary.model import Vocabulary, checked
from lathe.quantize.convert.vocabulary.sentencepiece import from_merges
from lathe.quantize.convert.vocabulary.source import TokenizerSource, need_tokenizer
from lathe.quantize.errors import UnsupportedError


def read_vocabulary(checkpoint: Checkpoint, hparams: Hparams) -> Vocabulary:
    """Read the tokenizer of a checkpoint as a GGUF vocabulary."""
    source = need_tokenizer(checkpoint)
    size = hparams.count("vocab_size") or source.size
    return checked(_convert(checkpoint, source, size))


def _convert(checkpoint: Checkpoint, source: TokenizerSource, size: int) -> Vocabulary:
    match source.kind:
        case "BPE" if source.model.get("byte_fallback"):
            return from_merges(checkpoint, source, size)
        case "BPE":
            return byte_level(checkpoint, source, size)
        case _:
            raise UnsupportedError(f"{source.path} has a tokenizer of the kind {source.kind}, which is not known here")
