"""What a graph answers to the probe text: logits of a decoder, hidden states of an encoder, scores of a reranker.

A decoder is asked in two parts, so that its past is tried, too. Invariant: every caller asks the same tokens, so the
rows of a checkpoint, its export and its quantizations can be compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from lathe.engine.errors import DataError
from lathe.engine.measure.parity import MOST_TOKENS, TEXT
from lathe.engine.onnx.folder import graph_of
from lathe.engine.worker.messages import LoadOptions

Rows = npt.NDArray[np.float32]
Kind = Literal["decoder", "encoder", "classifier"]


def tokens_of(folder: Path) -> list[int]:
    """The probe text as the folder's tokenizer cuts it."""
    from lathe.engine.worker.backends.onnx.tokens import JsonVocabulary

    return JsonVocabulary(folder, 0, 1 << 20).encode(TEXT, ends=True)[:MOST_TOKENS]


def open_session(path: Path, threads: int = 1) -> Any:
    """A checked session on the CPU."""
    from lathe.engine.worker.backends.onnx.runtime import Session

    return Session(path, LoadOptions(gpu_layers=0), threads)


def kind_of(session: Any) -> Kind:
    """What the graph gives."""
    if any(name.startswith("past") for name in session.inputs):
        return "decoder"
    if "logits" in session.outputs and not any(name in session.outputs for name in ("last_hidden_state",)):
        return "classifier"
    return "encoder"


def rows_of(session: Any, tokens: list[int]) -> tuple[Kind, Rows]:
    """One row per token (decoder: logits; encoder: hidden state), or the one row of a classifier."""
    kind = kind_of(session)
    if kind == "decoder":
        return kind, _decoded(session, tokens)
    ids = np.asarray([tokens], np.int64)
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids),
             "position_ids": np.arange(len(tokens), dtype=np.int64)[None]}  # fmt: skip
    unknown = sorted(session.inputs.keys() - given)
    if unknown:
        raise DataError(f"{session.file.path.name} wants {', '.join(unknown[:4])}, which Lathe cannot give")
    wanted = next(iter(session.outputs)) if kind == "encoder" else "logits"
    (output,) = session.native.run([wanted], {name: given[name] for name in session.inputs})
    return kind, np.asarray(output, np.float32).reshape(-1, output.shape[-1])


def probe(folder: Path, source: Path | None = None, threads: int = 1) -> tuple[Kind, Rows]:
    """Load a model's graph and ask it; the tokens are those of `source` where one is given."""
    return rows_of(open_session(graph_of(folder), threads), tokens_of(source or folder))


def _decoded(session: Any, tokens: list[int]) -> Rows:
    from lathe.engine.worker.backends.onnx.decoder import Decoder

    decoder = Decoder(session)
    half = max(1, len(tokens) // 2)
    past, first = decoder.compute(decoder.start(), [tokens[:half]])
    _, second = decoder.compute(past, [tokens[half:]])
    return np.concatenate([first.numpy()[0], second.numpy()[0]]).astype(np.float32)
