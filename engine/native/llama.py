"""Models and contexts of llama.cpp: owned, closed in the right order, with logits as numpy arrays.

Nothing here samples, schedules or knows about requests. Invariants: a context keeps its model alive; a handle is freed
once; nothing native points to memory that Python has let go; an exception in a callback surfaces from the call that
ran it; llama.cpp's own output never reaches the terminal.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

import msgspec
import numpy as np
import numpy.typing as npt
from lathe.engine.errors import DataError, InternalError
from lathe.engine.native import tiles
from lathe.engine.native.batch import Batch
from lathe.engine.native.vocabulary import Vocabulary
from lathe.quantize.libllama import bindings, complaint, forget, log_to, logged, version

__all__ = [
    "Batch", "ContextOptions", "DecodeFailed", "LlamaContext", "LlamaModel", "backend_init", "bindings", "complaint",
    "forget", "log_to", "logged", "physical_cores", "version",
]  # fmt: skip

Logits = npt.NDArray[np.float32]
EvalCallback = Callable[[int, bool], bool]
"""(address of a ggml_tensor, whether llama.cpp only asks if the value is wanted) -> wanted / go on."""

KV_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30,
}  # fmt: skip
"""Types that a KV cache can have -> ggml_type."""
FLASH_ATTENTION = {None: -1, False: 0, True: 1}


def backend_init() -> None:
    """Load llama.cpp and start its backends; silent, and harmless to call again."""
    bindings()


def physical_cores() -> int:
    """Threads that compute best: physical cores this process may run on, at least one."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


class DecodeFailed(InternalError):
    """llama_decode refused or gave up; `status` is its return value.

    1: no KV cells free (nothing was computed); 2: aborted; below 0: invalid batch or a compute error.
    """

    code = "E_DECODE"

    def __init__(self, status: int) -> None:
        known = {1: "the KV cache has no room for the batch", 2: "aborted"}
        reason = known.get(status) or complaint()
        super().__init__(f"llama.cpp could not decode a batch (status {status}): {reason}")
        self.status = status


class LlamaModel(Vocabulary):
    """Weights and vocabulary of one GGUF file."""

    def __init__(
        self,
        path: Path,
        *,
        gpu_layers: int = 0,
        mmap: bool = True,
        vocab_only: bool = False,
        progress: Callable[[float], bool] | None = None,
        shards: Sequence[Path] = (),
    ) -> None:
        """Load `path`; the header must have passed the strict preflight before.

        Args:
            gpu_layers: layers offloaded; negative: all.
            mmap: map the file instead of reading it.
            vocab_only: tokenizer and metadata alone, no weights.
            progress: called with 0..1; False stops the load.
            shards: the files of a split model, whatever they are called; `path` then only names it.

        Raises:
            DataError: llama.cpp refuses the file; the message carries its reason.
        """
        self._lib = lib = bindings()
        self._handle: int | None = None
        failures: list[BaseException] = []

        def report(fraction: float, _user: int | None) -> bool:
            try:
                return progress is None or progress(fraction)
            except BaseException as error:  # noqa: BLE001 - carried over native frames, raised below
                failures.append(error)
                return False

        params = lib.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.load_mode = lib.LLAMA_LOAD_MODE_MMAP if mmap else lib.LLAMA_LOAD_MODE_NONE
        params.vocab_only = vocab_only
        params.use_extra_bufts = vocab_only or tiles.work()
        params.progress_callback = lib.llama_progress_callback(report)
        forget()
        if shards:
            names = (ctypes.c_char_p * len(shards))(*map(os.fsencode, shards))
            self._handle = lib.llama_model_load_from_splits(names, len(shards), params)
        else:
            self._handle = lib.llama_model_load_from_file(os.fsencode(path), params)
        if failures:
            self.close()
            raise failures[0]
        if not self._handle:
            raise DataError(
                f"llama.cpp cannot load {path.name}: {complaint()}",
                hint="`lathe models show` checks the file",
                code="E_GGUF_MODEL",
            )
        super().__init__(lib, self._handle, path)
        self.n_ctx_train: int = lib.llama_model_n_ctx_train(self._handle)
        self.n_embd: int = lib.llama_model_n_embd(self._handle)
        self.n_layer: int = lib.llama_model_n_layer(self._handle)

    @property
    def handle(self) -> int:
        """The native pointer; raises once the model is closed."""
        if self._handle is None:
            raise InternalError(f"the model {self.path.name} is closed")
        return self._handle

    def close(self) -> None:
        """Free the weights; contexts of the model must be closed before."""
        handle, self._handle = self._handle, None
        if handle:
            self._lib.llama_model_free(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- facts -------------------------------------------------------------------------------------------------------
    @property
    def description(self) -> str:
        """llama.cpp's one-line type: `llama 4.2M Q8_0`."""
        buffer = ctypes.create_string_buffer(256)
        self._lib.llama_model_desc(self.handle, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return int(self._lib.llama_model_size(self.handle))

    @property
    def n_params(self) -> int:
        """Parameters in all tensors."""
        return int(self._lib.llama_model_n_params(self.handle))

    @property
    def has_encoder(self) -> bool:
        """Whether prompts go through llama_encode."""
        return bool(self._lib.llama_model_has_encoder(self.handle))

    @property
    def has_decoder(self) -> bool:
        """Whether llama.cpp decodes with it; BERT's family counts as such."""
        return bool(self._lib.llama_model_has_decoder(self.handle))

    @property
    def generates(self) -> bool:
        """Whether its logits are the next token's: embedders look both ways and have none."""
        causal = self.metadata(f"{self.metadata('general.architecture') or ''}.attention.causal") != "false"
        return self.has_decoder and causal

    @property
    def embeds(self) -> bool:
        """Whether its vectors are what it is for: it generates nothing, or its file names a pooling."""
        architecture = self.metadata("general.architecture") or ""
        return not self.generates or self.metadata(f"{architecture}.pooling_type") not in (None, "0")

    @property
    def is_recurrent(self) -> bool:
        """Whether its memory is a state that cannot be cut (Mamba, RWKV, hybrids)."""
        return bool(self._lib.llama_model_is_recurrent(self.handle) or self._lib.llama_model_is_hybrid(self.handle))

    def metadata(self, key: str) -> str | None:
        """A scalar of the file's metadata as text; None where it is not there."""
        size = self._lib.llama_model_meta_val_str(self.handle, key.encode(), None, 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        self._lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @property
    def chat_template(self) -> str | None:
        """The default chat template of the file."""
        text: bytes | None = self._lib.llama_model_chat_template(self.handle, None)
        return None if text is None else text.decode("utf-8", "replace")


class ContextOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is run; the defaults are llama.cpp's."""

    n_ctx: int = 0
    """Tokens of KV cache over all sequences; 0: the model's own context."""
    n_batch: int = 2048
    n_ubatch: int = 512
    n_seq_max: int = 1
    n_threads: int = 0
    """0: the physical cores."""
    n_threads_batch: int = 0
    """0: as `n_threads`."""
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    flash_attention: bool | None = None
    """None lets llama.cpp choose."""
    kv_unified: bool = False
    """One KV buffer shared by all sequences."""
    offload_kqv: bool = True
    embeddings: bool = False
    pooling: Literal[-1, 0, 1, 2, 3, 4] = -1
    """llama_pooling_type; -1: the model's own."""
    n_outputs_max: int = 0
    """Rows of logits of one batch, at least `n_seq_max`; 0: `n_batch`. Bounds the memory that logits take."""
    rope_scaling: Literal[-1, 0, 1, 2] = -1
    """llama_rope_scaling_type: none, linear, yarn; -1: the model's own."""
    rope_freq_scale: float = 0.0
    """RoPE frequency factor, 1/4 for a context four times as long; 0: the model's own."""


class LlamaContext:
    """A model at work: KV cache, compute buffers, logits."""

    def __init__(
        self, model: LlamaModel, options: ContextOptions | None = None, *, on_node: EvalCallback | None = None
    ) -> None:
        """Allocate the context.

        Args:
            on_node: sees every node of the compute graph (`cb_eval`); its exceptions surface from `decode`.

        Raises:
            DataError: llama.cpp refuses the options or has no memory; the message carries its reason.
        """
        options = options or ContextOptions()
        self._lib = lib = bindings()
        self._handle: int | None = None
        self.model = model
        self.options = options
        self._failures: list[BaseException] = []
        params = lib.llama_context_default_params()
        for field in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "kv_unified", "offload_kqv", "embeddings"):
            setattr(params, field, getattr(options, field))
        params.n_threads = options.n_threads or physical_cores()
        params.n_threads_batch = options.n_threads_batch or params.n_threads
        params.type_k = KV_TYPES[options.kv_type_k]
        params.type_v = KV_TYPES[options.kv_type_v]
        params.flash_attn_type = FLASH_ATTENTION[options.flash_attention]
        params.pooling_type = options.pooling
        params.n_outputs_max = options.n_outputs_max
        params.rope_scaling_type = options.rope_scaling
        params.rope_freq_scale = options.rope_freq_scale
        if on_node is not None:
            self._on_node = lib.ggml_backend_sched_eval_callback(self._guarded(on_node))
            params.cb_eval = self._on_node
        forget()
        self._handle = lib.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise DataError(f"llama.cpp cannot run {model.path.name} so: {complaint()}")
        self.memory = lib.llama_get_memory(self._handle)
        self.n_ctx: int = lib.llama_n_ctx(self._handle)
        self.n_batch: int = lib.llama_n_batch(self._handle)
        self._abort: object = None

    def _guarded(self, on_node: EvalCallback) -> Callable[[int, bool, int | None], bool]:
        def call(tensor: int, ask: bool, _user: int | None) -> bool:
            try:
                return bool(on_node(tensor, ask))
            except BaseException as error:  # noqa: BLE001 - carried over native frames, raised by `decode`
                self._failures.append(error)
                return False

        return call

    @property
    def handle(self) -> int:
        """The native pointer; raises once the context is closed."""
        if self._handle is None:
            raise InternalError("the context is closed")
        return self._handle

    def close(self) -> None:
        """Free KV cache and buffers."""
        handle, self._handle = self._handle, None
        if handle:
            self._lib.llama_free(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- compute -----------------------------------------------------------------------------------------------------
    def decode(self, batch: Batch) -> None:
        """Compute a batch; raises `DecodeFailed` with llama.cpp's status."""
        status = self.try_decode(batch)
        if status:
            raise DecodeFailed(status)

    def try_decode(self, batch: Batch) -> int:
        """Compute a batch and return llama.cpp's status; 0 is success."""
        forget()
        status: int = self._lib.llama_decode(self.handle, batch.native)
        if self._failures:
            failure = self._failures[0]
            self._failures.clear()
            raise failure
        return status

    def encode(self, batch: Batch) -> None:
        """Compute a batch through the encoder; for models without a decoder."""
        forget()
        status = self._lib.llama_encode(self.handle, batch.native)
        if status:
            raise DecodeFailed(status)

    def synchronize(self) -> None:
        """Wait until the last batch is computed."""
        self._lib.llama_synchronize(self.handle)

    def logits(self, rows: int) -> Logits:
        """The `rows` x n_vocab logits of the last batch, in order of its output flags.

        A view of llama.cpp's memory: valid until the next decode.
        """
        pointer = self._lib.llama_get_logits(self.handle)
        return np.ctypeslib.as_array(pointer, (rows, self.model.n_vocab))

    def logits_of(self, index: int) -> Logits:
        """The logits of the token at `index` of the last batch (-1: the last output); a view as in `logits`."""
        pointer = self._lib.llama_get_logits_ith(self.handle, index)
        if not pointer:
            raise InternalError(f"no logits were asked for at index {index} of the batch")
        return np.ctypeslib.as_array(pointer, (self.model.n_vocab,))

    def set_threads(self, decode: int, batch: int | None = None) -> None:
        """Change the number of threads for single tokens and for batches."""
        self._lib.llama_set_n_threads(self.handle, decode, batch or decode)

    def abort_when(self, wanted: Callable[[], bool] | None) -> None:
        """Let `wanted` stop a running decode between graph nodes (CPU only); None removes it."""
        none = self._lib.ggml_abort_callback(0)
        callback = none if wanted is None else self._lib.ggml_abort_callback(lambda _user: bool(wanted()))
        self._lib.llama_set_abort_callback(self.handle, callback, None)
        self._abort = callback

    # -- memory ------------------------------------------------------------------------------------------------------
    def clear(self, *, data: bool = True) -> None:
        """Empty the KV cache; `data` zeroes its buffers too."""
        self._lib.llama_memory_clear(self.memory, data)

    def remove(self, sequence: int, start: int = -1, end: int = -1) -> bool:
        """Remove positions [start, end) of a sequence (-1: open); False where only the whole can be removed."""
        return bool(self._lib.llama_memory_seq_rm(self.memory, sequence, start, end))

    def copy(self, source: int, target: int, start: int = -1, end: int = -1) -> None:
        """Let `target` share the cells of `source`; nothing is copied in a unified cache."""
        self._lib.llama_memory_seq_cp(self.memory, source, target, start, end)

    def save(self, sequence: int) -> bytes:
        """The state of a sequence, for `restore`."""
        size = self._lib.llama_state_seq_get_size(self.handle, sequence)
        buffer = (ctypes.c_uint8 * size)()
        written = self._lib.llama_state_seq_get_data(self.handle, buffer, size, sequence)
        return bytes(memoryview(buffer)[:written])

    def restore(self, sequence: int, state: bytes) -> bool:
        """Put a saved state into a sequence; False where this context cannot hold it."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        return bool(self._lib.llama_state_seq_set_data(self.handle, buffer, len(state), sequence))
