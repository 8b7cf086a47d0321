"""The llama.cpp backend: what `lathe.engine.worker.backends.batched` needs to serve a GGUF file."""

from __future__ import annotations

from lathe.engine.scheduler.ledger import Ledger
from lathe.engine.scheduler.scheduler import Scheduler
from lathe.engine.worker.backends.batched import MAX_WAITING, Batched, Parts
from lathe.engine.worker.backends.llama.adapters import Adapters
from lathe.engine.worker.backends.llama.admission import Admission
from lathe.engine.worker.backends.llama.embedding import Embedder
from lathe.engine.worker.backends.llama.lexicon import Lexicon
from lathe.engine.worker.backends.llama.loading import Loaded, load
from lathe.engine.worker.backends.llama.packing import WINDOW, Packer
from lathe.engine.worker.backends.llama.ring import Ring
from lathe.engine.worker.backends.llama.speculation import DraftModel, Speculator, guesser_for
from lathe.engine.worker.backends.llama.threads import Threads
from lathe.engine.worker.backends.protocol import Emit, Progress
from lathe.engine.worker.messages import LoadOptions
from lathe.engine.worker.renderer import Renderer
from lathe.engine.worker.sampling import Sampler
from lathe.engine.worker.templates import ChatTemplate

_IDLE_TOKENS, _IDLE_ON_CPU = 4096, 0
"""Cells of prefixes that may wait for their next request while others compute, before main memory is the better place.
On a GPU passing over them costs nothing that is noticed, and a quarter of a larger cache may wait; on the CPU every
batch of the others pays (512 idle cells among those of eight streams took a quarter of their speed, see
benchmarks/RESULTS.md), and bringing a prefix back is a copy within the same memory."""


def make(emit: Emit) -> Batched:
    """Build the backend."""
    return Batched(emit, assemble)


def assemble(path: str, options: LoadOptions, progress: Progress, renderer: Renderer) -> Parts:
    """Load a GGUF file."""
    loaded = load(path, options, progress)
    model, info = loaded.model, loaded.info
    lexicon = Lexicon(model, info.context)
    template = ChatTemplate(model.chat_template, lexicon, info.context, renderer)
    share = not loaded.recurrent
    ledger = Ledger(
        info.kv_tokens, loaded.sequences, share=share, spill_tokens=loaded.spill_tokens,
        idle_tokens=_idle_tokens(loaded) if loaded.spill_tokens else None,
    )  # fmt: skip
    scheduler = Scheduler(
        slots=options.slots, batch_tokens=loaded.context.n_batch, max_outputs=loaded.max_outputs,
        max_waiting=MAX_WAITING, ledger=ledger, share=share,
    )  # fmt: skip
    adapters = Adapters(model, loaded.context, options.adapters)
    embedder = Embedder(model, options)
    guesser = guesser_for(
        options.draft, lexicon, recurrent=loaded.recurrent,
        make=lambda path: DraftModel(
            path, lexicon, slots=options.slots, cells=info.kv_tokens, threads=info.threads,
            gpu_layers=-1 if info.gpu_layers else 0,
        ),
    )  # fmt: skip
    most_rows = min(loaded.context.n_batch, loaded.max_outputs)
    ring = Ring(loaded.context, loaded.max_outputs, None if info.gpu_layers else Threads(info.threads))
    batch_tokens = loaded.context.n_batch if info.gpu_layers else min(WINDOW, loaded.context.n_batch)
    return Parts(
        info=info, vocabulary=lexicon, template=template, ledger=ledger, scheduler=scheduler,
        ring=ring, adapters=adapters, embedder=embedder,
        packer=None if loaded.recurrent else Packer(
            ring, ledger, batch_tokens=batch_tokens, max_outputs=most_rows, sequences=loaded.sequences
        ),
        speculator=None if guesser is None else Speculator(guesser, ledger, most_rows=most_rows),
        admission=Admission(
            info, lexicon, template, adapters, keeps_prefixes=options.prefix_cache, longest_text=embedder.longest,
            samplers=lambda sampling, seed, grammar: Sampler(
                sampling, vocab=model.vocab, n_vocab=lexicon.size, context=info.context, seed=seed,
                end_tokens=sorted(lexicon.ends), grammar=grammar,
            ),
        ),
    )  # fmt: skip


def _idle_tokens(loaded: Loaded) -> int:
    return max(_IDLE_TOKENS, loaded.info.kv_tokens // 4) if loaded.info.gpu_layers else _IDLE_ON_CPU
