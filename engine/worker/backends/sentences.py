"""sentence-transformers behind the worker's protocol: embedders and cross-encoders as their authors published them.

Invariant: no code of a model's folder runs: remote code, foreign module types and pickled weights are refused before
any library sees the folder. Nothing is cut silently: a text beyond the model's length is refused with its count.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lathe.engine.errors import InternalError, PolicyError, UnavailableError, UsageError
from lathe.engine.generation import (
    Delta,
    Embeddings,
    EmbedRequest,
    GenerationRequest,
    Message,
    RenderedPrompt,
    Score,
    ScoreRequest,
)
from lathe.engine.native.llama import physical_cores
from lathe.engine.worker.backends.protocol import Emit, Pause, Progress, Ticket
from lathe.engine.worker.backends.turns import Turns
from lathe.engine.worker.messages import LoadOptions, WorkerInfo
from lathe.quantize.checkpoint import Checkpoint, read_checkpoint, refuse_remote_code

BATCH = 32
_OURS = "sentence_transformers."
_HINT = "`pip install 'lathe-llm[embed]'`"


def make(emit: Emit) -> Turns:
    """Build the backend."""
    return Turns(Sentences(), emit)


class Sentences:
    """One embedder or cross-encoder."""

    def __init__(self) -> None:
        self._model: Any = None
        self._tokenizer: Any = None
        self._ranks = False
        self._longest = 512

    def load(self, path: str, name: str, options: LoadOptions, progress: Progress) -> WorkerInfo:
        """Bring the model into memory.

        Raises:
            UnavailableError: the extra is not installed. UnsafeError, PolicyError: the folder asks for foreign code.
        """
        began = time.monotonic()
        checkpoint = read_checkpoint(Path(path))
        refuse_remote_code(checkpoint)
        _refuse_modules(checkpoint.folder)
        progress(0.1)
        try:
            import sentence_transformers
            import torch
        except ImportError as error:
            raise UnavailableError(f"{name} needs {error.name}, which is not installed", hint=_HINT) from error
        threads = options.threads or physical_cores()
        torch.set_num_threads(threads)
        self._ranks = _is_cross_encoder(checkpoint)
        common = {"device": "cuda" if torch.cuda.is_available() and options.gpu_layers != 0 else "cpu",
                  "trust_remote_code": False, "local_files_only": True}  # fmt: skip
        if self._ranks:
            self._model = sentence_transformers.CrossEncoder(path, **common)
            labels = self._model.config.num_labels
            if labels != 1:
                raise UsageError(f"{name} has {labels} classes: it is no reranker", code="E_CAPABILITY")
        else:
            self._model = sentence_transformers.SentenceTransformer(path, **common)
            self._model.default_prompt_name = None  # prefixes come with the texts
        self._model.eval()
        self._tokenizer = self._model.tokenizer
        limit = getattr(self._model, "max_length", None) if self._ranks else self._model.max_seq_length
        self._longest = min(limit or 512, options.context or 1 << 20)
        progress(1.0)
        size = sum(shard.stat().st_size for shard in checkpoint.shards)
        return WorkerInfo(
            backend="sentence_transformers", pid=os.getpid(), context=self._longest, kv_tokens=0, slots=options.slots,
            vocabulary=len(self._tokenizer), layers=checkpoint.config.get("num_hidden_layers"), threads=threads,
            load_s=time.monotonic() - began, weights_bytes=size, device_bytes={"cpu": size},
            capabilities=("rank",) if self._ranks else ("embed",),
            system=f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}",
        )  # fmt: skip

    def embed(self, request: EmbedRequest) -> Embeddings:
        """Vectors of texts, or their scores against a query."""
        import numpy as np

        if (request.pooling == "rank") != self._ranks:
            what = "scores pairs: it gives no vectors" if self._ranks else "is no cross-encoder"
            raise UsageError(f"this model {what}", code="E_CAPABILITY")
        if request.pooling not in ("rank", "model"):
            raise UsageError(f"this model pools by itself, not by {request.pooling}", code="E_CAPABILITY")
        texts = list(request.texts)
        pairs = [(request.query or "", text) for text in texts]
        tokens = self._count(pairs if self._ranks else texts)
        if self._ranks:
            import torch

            scores = self._model.predict(
                pairs, batch_size=BATCH, show_progress_bar=False, activation_fn=torch.nn.Identity()
            )
            rows = np.asarray(scores, "<f4").reshape(len(texts), 1)
        else:
            rows = self._model.encode(
                texts, batch_size=BATCH, show_progress_bar=False, normalize_embeddings=request.normalize
            ).astype("<f4")
        if not np.isfinite(rows).all():
            raise InternalError("the model gave a vector that is not finite")
        return Embeddings(rows.tobytes(), len(rows), rows.shape[1], tokens)

    def _count(self, texts: list[Any]) -> int:
        """Tokens of all texts.

        Raises:
            UsageError: one is longer than the model reads.
        """
        lengths = [len(ids) for ids in self._tokenizer(texts, verbose=False)["input_ids"]]
        longest = max(lengths, default=0)
        if longest > self._longest:
            raise UsageError(
                f"text {lengths.index(longest)} has {longest} tokens, the model reads {self._longest}",
                hint="split it", code="E_CONTEXT_OVERFLOW",
            )  # fmt: skip
        return sum(lengths)

    def tokenize(self, text: str, special: bool, bos: bool) -> tuple[int, ...]:
        """Text to ids."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=bos, verbose=False))

    def detokenize(self, tokens: tuple[int, ...]) -> str:
        """Ids to text."""
        return str(self._tokenizer.decode(list(tokens)))

    def generate(self, request: GenerationRequest, ticket: Ticket) -> Iterator[tuple[Delta, ...] | Pause]:
        """Refuse."""
        raise UsageError("this model embeds text and writes none", code="E_CAPABILITY")

    def score(self, request: ScoreRequest) -> tuple[Score, ...]:
        """Refuse."""
        raise UsageError("this model embeds text and gives it no probability", code="E_CAPABILITY")

    def render(
        self,
        messages: tuple[Message, ...],
        tools: str | None,
        template_args: dict[str, str | bool | int | float],
        add_generation_prompt: bool,
    ) -> RenderedPrompt:
        """Refuse."""
        raise UsageError("this model has no chat template", code="E_CAPABILITY")

    def close(self) -> None:
        """Nothing outlives the process."""


def _is_cross_encoder(checkpoint: Checkpoint) -> bool:
    return (checkpoint.architecture or "").endswith("ForSequenceClassification")


def _refuse_modules(folder: Path) -> None:
    """Refuse parts that are no classes of sentence-transformers: it would import whatever is named there."""
    import msgspec

    path = folder / "modules.json"
    if not path.is_file():
        return
    try:
        parts = msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path} is damaged: {error}") from error
    for part in parts:
        kind = str(part.get("type", ""))
        if not kind.startswith(_OURS):
            raise PolicyError(f"{path} names {kind[:80]!r}, which is no part of sentence-transformers")
