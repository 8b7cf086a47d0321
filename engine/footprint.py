"""What a GGUF model takes in memory under llama.cpp: weights, KV cache, compute buffers, overhead. Pure arithmetic.

The formulas follow how the pinned llama.cpp lays out its buffers; tests/engine/estimate compares them with what it
reports. All sizes are bytes. Invariant: more tokens, layers, slots or wider types never cost less with one kind of
attention.
"""

from __future__ import annotations

import math

import msgspec
from lathe.engine.worker.messages import KvType, LoadOptions
from lathe.quantize.card import ModelCard
from lathe.quantize.types import TENSOR_TYPES

MIB = 1024**2
CELL_PAD = 256
"""llama.cpp rounds the KV cache up to this many tokens."""
PROCESS = 64 * MIB
"""A worker without a model: interpreter, libraries, threads."""
PER_WORD = 400
"""Text, score, hash entries and merges of one vocabulary entry; 180 to 430 were measured."""
DEVICE_CONTEXT = 512 * MIB
"""Driver context and library workspaces of one process on one GPU."""
MAX_SEQUENCES = 256
"""llama.cpp's own limit."""
SPARE_SEQUENCES = 8
"""Native sequences beyond the slots that a prefix cache has at least."""
SEQUENCES = 96
"""Native sequences of a worker with few slots. llama.cpp compares all pairs of them for every batch: 256 cost a small
model an eighth of each token (55 us), 96 cost 8 us."""
LOGITS = 64 * MIB
"""What the rows of logits of one batch may take."""
SCORES = 512 * MIB
"""What the attention scores of one batch may take where plain attention is chosen."""
PLAIN_BATCH = 128
"""Tokens at a time with plain attention; its products gain nothing from more, its scores grow with each."""
_FLOAT = 4

_ENCODERS = ("bert", "embedding", "t5encoder")
_RECURRENT = ("mamba", "rwkv", "arwkv")
_STATE = 64
"""Values of recurrent state per channel: 16 in Mamba, 64 in RWKV, 128 in Mamba 2 with fewer channels."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A model's dimensions, with every guess made."""

    weights: int
    layers: int
    embedding: int
    hidden: int
    """Width of the feed-forward activations of one token: of all its experts together."""
    heads: int
    query: int
    """heads x head dimension."""
    keys: int
    values: int
    """Per token and layer, over all KV heads; 0 where nothing of the kind is cached."""
    vocabulary: int
    context: int
    words: int
    """Bytes of the token embedding."""
    output: int
    """Bytes of the output matrix; 0 where it is the token embedding's."""
    masks: int = 1
    """Attention masks of a batch; a sliding window has one of its own."""
    encoder: bool = False
    recurrent: bool = False

    @property
    def layer(self) -> float:
        """Bytes of weights in one layer, on average."""
        return max(0, self.weights - self.words - self.output) / self.layers


def shape_of(card: ModelCard) -> Shape | None:
    """Read the dimensions from a card; None where too much is unknown to estimate anything."""
    if card.format != "gguf" or not card.layers or not card.embedding_length:
        return None
    heads = card.heads or max(1, card.embedding_length // 128)
    head = card.key_length or card.embedding_length // heads
    kv_heads = card.kv_heads or heads
    value = card.value_length or head
    architecture = card.architecture or ""
    recurrent = architecture.startswith(_RECURRENT)
    encoder = any(mark in architecture for mark in _ENCODERS)
    cached = not (recurrent or encoder)
    # Multi-head latent attention caches one compressed row per token, which keys and values share.
    latent = architecture.startswith("deepseek") and kv_heads == 1 and head > value
    vocabulary = card.vocabulary or 0
    hidden = card.feed_forward_length or 4 * card.embedding_length
    bits = card.bits_per_weight or (8 * card.bytes / card.parameters if card.parameters else 16.0)
    words = min(card.bytes, round(vocabulary * card.embedding_length * bits / 8))
    return Shape(
        weights=card.bytes,
        layers=card.layers,
        embedding=card.embedding_length,
        hidden=hidden * (card.experts_used or 1),
        heads=heads,
        query=heads * head,
        keys=kv_heads * head if cached else 0,
        values=kv_heads * value if cached and not latent else 0,
        vocabulary=vocabulary,
        context=card.context_length or 4096,
        words=words,
        output=0 if _tied(card, heads * head, kv_heads * (head + value), hidden) else words,
        masks=2 if card.sliding_window else 1,
        encoder=encoder,
        recurrent=recurrent,
    )


def _tied(card: ModelCard, query: int, cached: int, hidden: int) -> bool:
    """Whether the parameters leave room for one vocabulary matrix only."""
    width, vocabulary = card.embedding_length or 0, card.vocabulary or 0
    if not card.parameters or not vocabulary:
        return True
    layer = width * (2 * query + cached) + 3 * width * hidden * (card.experts or 1)
    return card.parameters - (card.layers or 0) * layer < 1.5 * vocabulary * width


def pad(tokens: int) -> int:
    """The size llama.cpp gives a KV cache of `tokens`."""
    return math.ceil(tokens / CELL_PAD) * CELL_PAD


def kv_cache(shape: Shape, tokens: int, kv_type: KvType, slots: int) -> int:
    """The cache of all layers. Sliding windows save nothing: their layers keep all tokens, for the prefix cache."""
    if shape.recurrent:
        return shape.layers * slots * 2 * shape.embedding * _STATE * _FLOAT
    kind = TENSOR_TYPES[kv_type.upper()]
    row = sum(math.ceil(width / kind.block) * kind.bytes for width in (shape.keys, shape.values))
    return shape.layers * pad(tokens) * row


def outputs(vocabulary: int, slots: int, *, recurrent: bool = False) -> int:
    """Rows of logits of one batch: one per slot, and as many as may be kept for prompts that are scored."""
    if recurrent:
        return slots
    affordable = LOGITS // (_FLOAT * max(1, vocabulary))
    return min(MAX_SEQUENCES, max(slots + SPARE_SEQUENCES, affordable))


def sequences(vocabulary: int, slots: int, *, recurrent: bool = False) -> int:
    """Native sequences of a worker: its slots, and those that the prefix cache keeps; each has a row of logits."""
    rows = outputs(vocabulary, slots, recurrent=recurrent)
    return min(rows, max(slots + SPARE_SEQUENCES, SEQUENCES))  # a recurrent one has a state each, and shares none


def choose_attention(options: LoadOptions, heads: int, cells: int, *, on_cpu: bool) -> tuple[bool | None, int]:
    """How a worker computes attention, and how many tokens at a time.

    On the CPU llama.cpp's flash attention walks the cache cell by cell for every row of a batch of fewer than 64, which
    is every decode step: with 2,000 tokens behind it a step took 1.8 to 2.7 times as long as with plain matrix products
    (benchmarks/RESULTS.md). Those pay for cells of other sequences too, which flash attention skips, and keep all
    scores of a batch; so they are chosen for one sequence at a time, while its scores stay small.

    Returns:
        Flash attention on, off, or None where llama.cpp chooses; and the tokens of a micro-batch.
    """
    batch = max(options.batch_tokens, options.slots)
    open_to_choice = options.flash_attention is None and on_cpu and options.slots == 1
    if not open_to_choice or options.kv_type not in ("f16", "bf16", "f32"):
        return options.flash_attention, batch
    small = min(batch, PLAIN_BATCH)
    return (False, small) if _FLOAT * small * heads * cells <= SCORES else (None, batch)


def compute(shape: Shape, tokens: int, options: LoadOptions) -> int:
    """The scratch buffer at the widest moment of one batch, and the logits of every sequence."""
    cells = tokens if shape.encoder else pad(tokens)
    rows = outputs(shape.vocabulary, options.slots, recurrent=shape.recurrent)
    wish, small = choose_attention(options, shape.heads, cells, on_cpu=options.gpu_layers == 0 and not shape.encoder)
    # An encoder reads a text in one piece; buffers are made for a whole number of tokens per sequence.
    batch = tokens if shape.encoder else min(small, cells)
    parallel = sequences(shape.vocabulary, options.slots, recurrent=shape.recurrent)
    batch = math.ceil(batch / parallel) * parallel
    flash = wish is not False
    mask = shape.masks * batch * cells * (2 if flash else _FLOAT)
    attention = mask + batch * _FLOAT * (3 * shape.embedding + 2 * shape.query + shape.keys + shape.values)
    if not flash:
        attention += batch * _FLOAT * cells * shape.heads
    forward = mask + batch * _FLOAT * (3 * shape.hidden + 4 * shape.embedding)
    logits = min(batch, rows) * _FLOAT * (shape.vocabulary + 2 * shape.embedding)
    return max(attention, forward, logits) + rows * shape.vocabulary * _FLOAT


def process(shape: Shape) -> int:
    """What the worker takes besides the model."""
    return PROCESS + PER_WORD * shape.vocabulary
