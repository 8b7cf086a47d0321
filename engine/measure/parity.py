"""Parity of a conversion: what the GGUF file computes beside what transformers computes of the checkpoint.

The checkpoint runs in a process of its own (`python -m lathe.engine.measure.parity`), so that torch's memory is gone
before the GGUF file is loaded. Invariant: both sides read the same tokens, and a comparison that cannot be made says
why instead of passing.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from lathe.engine.measure import originals
from lathe.engine.measure.agreement import Agreement, compare
from lathe.quantize.checkpoint import Checkpoint

Rows = npt.NDArray[np.float32]

TEXT = (
    "The quick brown fox jumps over the lazy dog. def area(width, height):\n    return width * height\n"
    "In 1969, people first walked on the Moon; the journey took three days. Return True if the path exists."
)
PLAIN = "Once upon a time there was a little girl who lived in a house near the sea. She liked to play with her dog."
"""For vocabularies of few characters."""
MOST_TOKENS = 96
_MEMORY_SHARE = 0.5
"""Of the free memory that the checkpoint may take in 32 bits."""
_LIMITS = {"f32": 2e-3, "f16": 2e-2, "bf16": 6e-2, "q8_0": 1e-1}
"""Difference in the scale of the truth beyond which a conversion is called doubtful."""
_SCORES = 4
"""llama_pooling_type of rerankers."""


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """The comparison, or why there is none."""

    agreement: Agreement | None = None
    skipped: str = ""
    doubtful: bool = False
    """It differs more than the type explains."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the process with transformers is to compute."""

    source: str
    tokens: list[int]
    output: str
    """Path of the rows, a numpy file."""


class Computed(msgspec.Struct, frozen=True):
    """The rows are written."""


def check(checkpoint: Checkpoint, gguf: Path, outtype: str) -> Parity:
    """Compare a converted file with its checkpoint on a short text; the CPU computes both."""
    from lathe.engine.errors import LatheError
    from lathe.engine.jobs import helper

    if reason := _obstacle(checkpoint):
        return Parity(skipped=reason)
    kind = _kind(checkpoint)
    try:
        tokens, converted = _converted(gguf, kind)
    except LatheError as error:
        return Parity(skipped=error.message)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        request = Request(source=str(checkpoint.folder), tokens=tokens, output=str(path))
        try:
            helper.ask(__name__, request, Computed, role="transformers")
        except LatheError as error:
            return Parity(skipped=error.message)
        original: Rows = np.load(path, allow_pickle=False)
    if len(original) != len(converted):
        return Parity(skipped=f"transformers gives {len(original)} rows and llama.cpp {len(converted)}")
    agreement = compare(original, converted, logits=kind == "decoder")
    return Parity(agreement=agreement, doubtful=agreement.relative > _LIMITS.get(outtype.lower(), 0.1))


def _obstacle(checkpoint: Checkpoint) -> str:
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    if checkpoint.remote_code:
        return "transformers would need the checkpoint's own code"
    import psutil

    if 4 * checkpoint.parameters > _MEMORY_SHARE * psutil.virtual_memory().available:
        return f"{checkpoint.parameters / 1e9:.1f} B parameters in 32 bits do not fit the free memory"
    return ""


def _kind(checkpoint: Checkpoint) -> str:
    name = checkpoint.architecture or ""
    if name.endswith("ForSequenceClassification"):
        return "scorer"
    return "decoder" if name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) else "encoder"


def _converted(gguf: Path, kind: str) -> tuple[list[int], Rows]:
    """The tokens of the text and what llama.cpp makes of them."""
    from lathe.engine.errors import DataError
    from lathe.engine.native.llama import Batch, ContextOptions, LlamaContext, LlamaModel, bindings

    pooling = {"scorer": _SCORES, "encoder": 0}.get(kind, -1)
    with LlamaModel(gguf) as model:
        try:
            tokens = model.tokenize(TEXT.encode(), add_special=True)[:MOST_TOKENS]
        except DataError:
            tokens = model.tokenize(PLAIN.encode(), add_special=True)[:MOST_TOKENS]
        options = ContextOptions(
            n_ctx=MOST_TOKENS, n_batch=MOST_TOKENS, n_ubatch=MOST_TOKENS, embeddings=kind != "decoder",
            pooling=pooling,  # type: ignore[arg-type]
            kv_type_k="f32", kv_type_v="f32", flash_attention=False,
        )  # fmt: skip
        with LlamaContext(model, options) as context:
            batch = Batch(len(tokens))
            batch.extend(tokens, 0, output=True)
            context.decode(batch)
            if kind == "decoder":
                rows = context.logits(len(tokens)).copy()
            elif kind == "scorer":
                pointer = bindings().llama_get_embeddings_seq(context.handle, 0)
                rows = np.ctypeslib.as_array(pointer, (1, 1)).copy()
            else:
                pointer = bindings().llama_get_embeddings(context.handle)
                rows = np.ctypeslib.as_array(pointer, (len(tokens), model.n_embd)).copy()
    return [int(token) for token in tokens], rows


def _original(request: Request) -> Computed:
    """In the process with transformers."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    config = transformers.AutoConfig.from_pretrained(request.source, trust_remote_code=False, local_files_only=True)
    name = (config.architectures or [""])[0]
    loader = getattr(transformers, name, transformers.AutoModel)
    model = originals.load(Path(request.source), loader, attn_implementation="eager")
    given = torch.tensor([request.tokens])
    with torch.no_grad():
        result = model(input_ids=given, attention_mask=torch.ones_like(given))
    found = result.logits if hasattr(result, "logits") else result.last_hidden_state
    if name.endswith("ForMaskedLM"):
        with torch.no_grad():
            found = model.base_model(input_ids=given, attention_mask=torch.ones_like(given)).last_hidden_state
    np.save(request.output, found.float().numpy().reshape(-1, found.shape[-1]))
    return Computed()


if __name__ == "__main__":
    from lathe.engine.jobs import helper

    helper.serve(Request, _original)
