"""What llama.cpp can compute on in this process, and a pool of CPU threads that outlives single calls.

Through ggml's device registry, which the bindings leave out. Invariant: only functions and the one structure that
ggml's headers publish are used; the structure's size is checked by a round trip before it is trusted.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, Self

import msgspec
from lathe.engine.errors import UnavailableError
from lathe.engine.native.llama import LlamaContext
from lathe.quantize.libllama import bindings, ggml

_KINDS = ("cpu", "gpu", "igpu", "accel", "meta")
_MAX_THREADS = 512
"""GGML_MAX_N_THREADS."""


class Device(msgspec.Struct, frozen=True):
    """One device of ggml's registry."""

    name: str
    """`CPU`, `CUDA0`, `Vulkan1`."""
    description: str
    kind: str
    """`cpu`, `gpu`, `igpu`, `accel` or `meta`."""
    backend: str
    """`CPU`, `CUDA`, `Vulkan`."""


class _ThreadpoolParams(ctypes.Structure):
    _fields_ = [
        ("cpumask", ctypes.c_bool * _MAX_THREADS),
        ("n_threads", ctypes.c_int),
        ("priority", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    ]


@functools.cache
def _library() -> Any:
    lib = ggml()
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    for name, result, arguments in (
        ("ggml_backend_dev_count", number, []),
        ("ggml_backend_dev_get", pointer, [number]),
        ("ggml_backend_dev_name", text, [pointer]),
        ("ggml_backend_dev_description", text, [pointer]),
        ("ggml_backend_dev_type", ctypes.c_int, [pointer]),
        ("ggml_backend_dev_by_type", pointer, [ctypes.c_int]),
        ("ggml_backend_dev_backend_reg", pointer, [pointer]),
        ("ggml_backend_reg_name", text, [pointer]),
        ("ggml_backend_reg_get_proc_address", pointer, [pointer, text]),
        ("ggml_threadpool_params_default", _ThreadpoolParams, [ctypes.c_int]),
        ("ggml_commit", text, []),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


@functools.cache
def devices() -> tuple[Device, ...]:
    """Every device llama.cpp sees, in its order."""
    lib = _library()
    found = []
    for index in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(index)
        found.append(
            Device(
                name=_text(lib.ggml_backend_dev_name(device)),
                description=_text(lib.ggml_backend_dev_description(device)),
                kind=_KINDS[lib.ggml_backend_dev_type(device)],
                backend=_text(lib.ggml_backend_reg_name(lib.ggml_backend_dev_backend_reg(device))),
            )
        )
    return tuple(found)


def commit() -> str:
    """The commit of llama.cpp that the library was built from."""
    return _text(_library().ggml_commit())


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


class Threadpool:
    """CPU threads that wait for work between calls, as llama.cpp's own tools use them."""

    def __init__(self, threads: int) -> None:
        lib = _library()
        device = lib.ggml_backend_dev_by_type(_KINDS.index("cpu"))
        registry = lib.ggml_backend_dev_backend_reg(device) if device else None
        create, free = (
            lib.ggml_backend_reg_get_proc_address(registry, name) if registry else None
            for name in (b"ggml_threadpool_new", b"ggml_threadpool_free")
        )
        params = lib.ggml_threadpool_params_default(min(threads, _MAX_THREADS))
        if not create or not free or params.n_threads != min(threads, _MAX_THREADS):
            raise UnavailableError("this build of llama.cpp has no CPU thread pool")
        self._free = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(free)
        self._handle = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_ThreadpoolParams))(create)(params)

    def attach(self, context: LlamaContext) -> None:
        """Let a context compute on the pool; the context must be closed before it."""
        attach = bindings()._lib.llama_attach_threadpool  # the bindings do not declare it
        attach.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        attach.restype = None
        attach(context.handle, self._handle, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        handle, self._handle = self._handle, None
        if handle:
            self._free(handle)
