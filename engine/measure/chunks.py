"""A text cut into chunks, run through a model, its logits handed out block by block.

This is llama-perplexity's procedure, shared by perplexity, divergence and tuning: chunks of `n_ctx` tokens, each
started afresh with BOS where the model wants one, the second half scored. Several chunks go through one decode call as
separate sequences. Invariant: two models over one `Chunks` yield blocks of the same rows in the same order, so they
can be walked side by side; the logits of at most `LOGITS_BUDGET` bytes exist at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from lathe.engine.errors import DataError, MissingError
from lathe.engine.native.llama import Batch, ContextOptions, LlamaContext, LlamaModel

LOGITS_BUDGET = 256 * 1024 * 1024
"""Bytes of float32 logits per decode call; a vocabulary of 150,000 gets 447 rows."""
BATCH_TOKENS = 2048
"""Tokens per decode call, as llama-perplexity has it."""

Tokens = npt.NDArray[np.int32]


def broken() -> DataError:
    """What a model with damaged weights is told by; figures of it would mean nothing."""
    return DataError("the model computes values that are no numbers; its weights are broken")


class Block(msgspec.Struct, frozen=True):
    """Rows of logits with the token that really came next."""

    chunk: int
    """Index of the first chunk in the block."""
    chunks_done: int
    """Whole chunks finished once this block is."""
    targets: Tokens
    logits: npt.NDArray[np.float32]
    """rows x n_vocab; a view, valid until the next block."""


class Chunks(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a text, cut."""

    tokens: Tokens
    n_ctx: int
    n_chunks: int
    bos: int | None
    """What replaces the first token of each chunk; None: nothing does."""
    n_vocab: int

    @property
    def first(self) -> int:
        """The first scored position of a chunk."""
        return self.n_ctx // 2

    @property
    def rows(self) -> int:
        """Scored tokens per chunk; the last position has no successor."""
        return self.n_ctx - 1 - self.first

    @property
    def sequences(self) -> int:
        """Chunks per decode call."""
        affordable = LOGITS_BUDGET // (4 * self.n_vocab * max(1, self.rows))
        return max(1, min(BATCH_TOKENS // self.n_ctx, affordable, self.n_chunks))

    @property
    def batch_tokens(self) -> int:
        """Tokens per decode call."""
        if self.sequences > 1:
            return self.sequences * self.n_ctx
        affordable = max(32, LOGITS_BUDGET // (4 * self.n_vocab))
        return min(BATCH_TOKENS, self.n_ctx, affordable)

    def options(self, *, threads: int = 0, kv_type: str = "f16") -> ContextOptions:
        """The context that runs them."""
        return ContextOptions(
            n_ctx=self.sequences * self.n_ctx,
            n_batch=self.batch_tokens,
            n_ubatch=min(512, self.batch_tokens),
            n_seq_max=self.sequences,
            n_threads=threads,
            kv_type_k=kv_type,
            kv_type_v=kv_type,
        )

    def limited(self, n_chunks: int) -> Chunks:
        """The first chunks of these."""
        return msgspec.structs.replace(self, n_chunks=min(n_chunks, self.n_chunks))

    def scored(self) -> Tokens:
        """Every token that is scored, n_chunks x rows."""
        cut = self.tokens[: self.n_chunks * self.n_ctx].reshape(self.n_chunks, self.n_ctx)
        return cut[:, self.first + 1 :]


def read_text(path: Path) -> bytes:
    """The text of a file, byte by byte, without the newline that ends it.

    Raises:
        DataError: it is no UTF-8, of which native tokenizers die, or holds zero bytes, as other encodings do.
    """
    try:
        text = path.read_bytes().removesuffix(b"\n")
    except FileNotFoundError as error:
        raise MissingError(f"no text at {path}") from error
    try:
        text.decode("utf-8")
        at = text.find(0)
    except UnicodeDecodeError as error:
        at = error.start
    if at >= 0:
        raise DataError(
            f"{path} is no UTF-8 text: byte {at:,} is 0x{text[at]:02x}",
            hint="`iconv -f LATIN1 -t UTF-8` (or UTF-16, ...) makes one of a text in another encoding",
            code="E_ENCODING",
        )
    return text


def check_length(model: LlamaModel, tokens: int) -> None:
    """Refuse texts that are longer than an embedder can read; raises `DataError`."""
    if tokens > model.n_ctx_train:
        raise DataError(
            f"{model.path.name} reads texts of at most {model.n_ctx_train} tokens",
            hint=f"use a context of at most {model.n_ctx_train}",
        )


def cut(model: LlamaModel, text: bytes, n_ctx: int, limit: int = -1, *, embedders: bool = False) -> Chunks:
    """Tokenize a text and cut it; `limit` is the most chunks taken, -1 takes all.

    Args:
        embedders: take models that generate nothing, too; their chunks are computed whole, so they must fit a text.

    Raises:
        DataError: the text is shorter than two chunks, or the model does not predict the next token.
    """
    if model.has_encoder or not (embedders or model.generates):
        raise DataError(
            f"{model.path.name} predicts no next token",
            hint="an embedder is measured by its vectors: `lathe kld` beside its base, `lathe rag eval --embedder`",
        )
    if not model.generates:
        check_length(model, n_ctx)
    tokens = model.tokenize(text, add_special=True)
    if len(tokens) < 2 * n_ctx:
        raise DataError(
            f"the text has {len(tokens)} tokens, and chunks of {n_ctx} need at least {2 * n_ctx}",
            hint="use a longer text or a smaller context",
        )
    n_chunks = len(tokens) // n_ctx
    return Chunks(
        tokens=tokens,
        n_ctx=n_ctx,
        n_chunks=n_chunks if limit < 0 else min(limit, n_chunks),
        bos=model.bos if model.add_bos else None,
        n_vocab=model.n_vocab,
    )


def run(context: LlamaContext, chunks: Chunks, start: int = 0) -> Iterator[Block]:
    """Decode the chunks from `start` on and yield the logits of their second halves."""
    batch = Batch(chunks.batch_tokens)
    step = chunks.batch_tokens if chunks.sequences == 1 else chunks.n_ctx
    for chunk in range(start, chunks.n_chunks, chunks.sequences):
        together = range(chunk, min(chunk + chunks.sequences, chunks.n_chunks))
        context.clear()
        for position in range(0, chunks.n_ctx, step):
            positions = np.arange(position, min(position + step, chunks.n_ctx))
            scored = (positions >= chunks.first) & (positions < chunks.n_ctx - 1)
            fill(batch, chunks, together, positions, scored)
            context.decode(batch)
            if scored.any():
                targets = np.concatenate([chunks.tokens[at * chunks.n_ctx + 1 + positions[scored]] for at in together])
                whole = positions[-1] >= chunks.n_ctx - 2  # nothing follows a chunk's last token to score it by
                done = together.stop if whole else chunk
                yield Block(chunk, done, targets, context.logits(len(targets)))


def fill(
    batch: Batch, chunks: Chunks, which: range, positions: npt.NDArray[np.int64], outputs: npt.NDArray[np.bool_]
) -> None:
    """Put the given positions of some chunks into a batch, one sequence each."""
    batch.clear()
    for sequence, chunk in enumerate(which):
        where = batch.extend(chunks.tokens[chunk * chunks.n_ctx + positions], int(positions[0]), sequence, outputs)
        if positions[0] == 0 and chunks.bos is not None:
            batch.token[where.start] = chunks.bos
