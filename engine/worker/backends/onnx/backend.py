"""The ONNX backend: what `lathe.engine.worker.backends.batched` needs to serve a graph with ONNX Runtime.

The same loop as for GGUF: continuous batching, fair shares, deadlines, sampling by llama.cpp's chain. What is not
there is refused by name: grammars and DRY need llama.cpp's vocabulary, adapters its graph. A sequence keeps its past to
itself; one that ended is kept in main memory for the next turn of its conversation.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import msgspec
from lathe.engine.errors import InternalError, MissingError, UsageError
from lathe.engine.generation import Sampling
from lathe.engine.native.llama import physical_cores
from lathe.engine.scheduler.ledger import Effect, Ledger
from lathe.engine.scheduler.scheduler import Scheduler
from lathe.engine.scheduler.sequence import Plan
from lathe.engine.worker.backends.batched import MAX_WAITING, Batched, Parts
from lathe.engine.worker.backends.llama.admission import Admission, Lane
from lathe.engine.worker.backends.llama.embedding import Embedding
from lathe.engine.worker.backends.llama.probabilities import Rows
from lathe.engine.worker.backends.onnx.decoder import Decoder
from lathe.engine.worker.backends.onnx.encoder import Encoder
from lathe.engine.worker.backends.onnx.ring import Ring
from lathe.engine.worker.backends.onnx.runtime import Session
from lathe.engine.worker.backends.onnx.tokens import JsonVocabulary
from lathe.engine.worker.backends.protocol import Emit, Progress
from lathe.engine.worker.messages import LoadOptions, WorkerInfo
from lathe.engine.worker.renderer import Renderer
from lathe.engine.worker.sampling import Sampler
from lathe.engine.worker.templates import ChatTemplate
from lathe.quantize.card import ModelCard
from lathe.quantize.cards import read_card
from lathe.quantize.checkpoint import read_json
from lathe.quantize.folder_cards import onnx_graphs

_LOGITS_BYTES = 64 * 2**20
"""What the logits of one prompt chunk may take: these graphs give a row for every token."""
_KV_SHARE = 0.5
"""Part of the free memory that pasts may take, the copy that each step makes included."""
_SPILL_SHARE = 0.125
_DEFAULT_CONTEXT = 2048


def make(emit: Emit) -> Batched:
    """Build the backend."""
    return Batched(emit, assemble)


def assemble(path: str, options: LoadOptions, progress: Progress, renderer: Renderer) -> Parts:
    """Load an ONNX file or folder.

    Raises:
        UnavailableError: ONNX Runtime is not installed.
        DataError: the graph is none that we can drive.
    """
    begun = time.monotonic()
    place = Path(path)
    if not place.exists():
        raise MissingError(f"no model at {place}")
    if options.adapters or options.draft:
        raise UsageError("adapters and draft models belong to GGUF models", code="E_CAPABILITY")
    folder = place if place.is_dir() else place.parent
    graph, *others = onnx_graphs(place)
    if others:
        raise UsageError(f"{folder.name} has an encoder and a decoder, which Lathe does not serve", code="E_CAPABILITY")
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    card = read_card(place)
    threads = options.threads or physical_cores()
    session = Session(graph, options, threads)
    progress(0.9)
    if any(name.startswith("past") for name in session.inputs) or _wants_past(session):
        parts = _decoder(Decoder(session), folder, card, options, renderer)
    else:
        parts = _encoder(Encoder(session, folder, config, options.context), folder, options, renderer)
    progress(1.0)
    return _timed(parts, session, card, threads, time.monotonic() - begun)


def _wants_past(session: Session) -> bool:
    """Whether it is a language model that was exported without its past: `Decoder` says what to do about it."""
    logits = session.outputs.get("logits")
    return logits is not None and len(logits.shape) == 3


def _decoder(decoder: Decoder, folder: Path, card: ModelCard, options: LoadOptions, renderer: Renderer) -> Parts:
    context = options.context or card.context_length or _DEFAULT_CONTEXT
    affordable = max(context, _affordable(decoder.token_bytes, _KV_SHARE))
    cells = options.kv_tokens or min(context * options.slots, affordable)
    context = min(context, cells)
    vocabulary = JsonVocabulary(folder, decoder.vocabulary, context)
    batch = max(options.slots, min(options.batch_tokens, _LOGITS_BYTES // (4 * vocabulary.size)))
    if decoder.merged:
        batch = max(batch, context)  # its branch for first tokens knows no past
    info = _info(vocabulary, options, context, cells, ("generate", "score"), card)
    spill = min(4 * cells, _affordable(decoder.token_bytes, _SPILL_SHARE)) if options.prefix_cache else 0
    ledger = Ledger(cells, options.slots, share=False, spill_tokens=spill, cut=not decoder.merged)
    scheduler = Scheduler(
        slots=options.slots, batch_tokens=batch, max_outputs=batch, max_waiting=MAX_WAITING, ledger=ledger, share=False
    )  # fmt: skip
    return _parts(info, vocabulary, card, renderer, ledger, scheduler, Ring(decoder), _NoVectors(), options)


def _encoder(encoder: Encoder, folder: Path, options: LoadOptions, renderer: Renderer) -> Parts:
    vocabulary = encoder.vocabulary = JsonVocabulary(folder, 0, encoder.longest)
    abilities = ("embed", "rank") if encoder.ranks else ("embed",)
    card = ModelCard(format="onnx")
    info = _info(vocabulary, options, encoder.longest, encoder.longest, abilities, card)
    ledger = Ledger(1, options.slots)
    scheduler = Scheduler(slots=1, batch_tokens=1, max_outputs=1, max_waiting=0, ledger=ledger)
    return _parts(info, vocabulary, card, renderer, ledger, scheduler, _NoTokens(), encoder, options)


def _parts(
    info: WorkerInfo, vocabulary: JsonVocabulary, card: ModelCard, renderer: Renderer, ledger: Ledger,
    scheduler: Scheduler, ring: Ring | _NoTokens, embedder: Encoder | _NoVectors, options: LoadOptions,
) -> Parts:  # fmt: skip
    template = ChatTemplate(card.chat_template, vocabulary, info.context, renderer)
    admission = Admission(
        info, vocabulary, template, _NoAdapters(), keeps_prefixes=options.prefix_cache, longest_text=embedder.longest,
        samplers=lambda sampling, seed, grammar: _sampler(sampling, seed, grammar, vocabulary, info.context),
    )  # fmt: skip
    return Parts(
        info=info, vocabulary=vocabulary, template=template, ledger=ledger, scheduler=scheduler, ring=ring,
        adapters=_NoAdapters(), embedder=embedder, admission=admission,
    )  # fmt: skip


def _info(
    vocabulary: JsonVocabulary, options: LoadOptions, context: int, cells: int, abilities: tuple[str, ...],
    card: ModelCard,
) -> WorkerInfo:  # fmt: skip
    return WorkerInfo(
        backend="onnx",
        pid=os.getpid(),
        context=context,
        kv_tokens=cells,
        slots=options.slots,
        vocabulary=vocabulary.size,
        layers=card.layers,
        weights_bytes=card.bytes or None,
        chat_template=card.chat_template,
        bos_token=vocabulary.bos_name or None,
        eos_token=vocabulary.eos_name or None,
        bos_token_id=vocabulary.bos if vocabulary.bos >= 0 else None,
        eos_token_id=vocabulary.eos if vocabulary.eos >= 0 else None,
        capabilities=(*abilities, "chat") if card.chat_template and "generate" in abilities else abilities,
    )


def _timed(parts: Parts, session: Session, card: ModelCard, threads: int, seconds: float) -> Parts:
    """The parts with what was measured while they were made."""
    layers = card.layers or 0
    info = msgspec.structs.replace(
        parts.info, threads=threads, load_s=seconds, system=session.system, weights_bytes=card.bytes or None,
        layers=card.layers, gpu_layers=layers + 1 if session.device == "cuda" else 0,
        device_bytes={"CUDA0" if session.device == "cuda" else "cpu": card.bytes},
    )  # fmt: skip
    return msgspec.structs.replace(parts, info=info)


def _affordable(token_bytes: int, share: float) -> int:
    """Tokens whose past fits that part of the free main memory."""
    import psutil

    return int(psutil.virtual_memory().available * share / max(1, token_bytes))


def _sampler(
    sampling: Sampling, seed: int, grammar: str | None, vocabulary: JsonVocabulary, context: int
) -> Sampler:  # fmt: skip
    for wanted, name in ((grammar is not None, "a grammar or JSON schema"), (sampling.dry_multiplier != 0, "DRY")):
        if wanted:
            raise UsageError(f"{name} needs a GGUF model", hint="ask without it", code="E_CAPABILITY")
    return Sampler(
        sampling, vocab=None, n_vocab=vocabulary.size, context=context, seed=seed, end_tokens=sorted(vocabulary.ends)
    )


class _NoAdapters:
    """ONNX graphs have no place for adapters."""

    def lane(self, wanted: Mapping[str, float]) -> Lane:
        """Refuse every adapter that would act."""
        if any(wanted.values()):
            raise UsageError("no adapter is loaded with this model", hint="adapters belong to GGUF models")
        return ()

    def activate(self, lane: Lane) -> None:
        """There is only the model as it is."""


class _NoVectors:
    """A decoder gives no hidden states."""

    longest = 0

    def __init__(self) -> None:
        self.waiting: deque[Embedding] = deque()
        self.busy_since = 0.0

    def step(self) -> Embedding | None:
        """Never called: what it cannot do is refused at admission."""
        raise InternalError("this model gives no vectors")


class _NoTokens:
    """An encoder computes no plans."""

    handle = None

    def __init__(self) -> None:
        self.busy_since = 0.0

    def apply(self, effects: list[Effect]) -> None:
        """Nothing is kept."""

    def compute(self, plan: Plan) -> float | None:
        """Never called: what it cannot do is refused at admission."""
        raise InternalError("this model computes no tokens")

    def rows(self) -> Rows:
        """Never called."""
        raise InternalError("this model computes no tokens")

    def interrupt(self, request: int) -> None:
        """A batch of texts is short."""
