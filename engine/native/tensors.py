"""A look at tensors inside llama.cpp's compute graph, for evaluation callbacks.

The layout of `ggml_tensor` belongs to the build and not to its interface. Invariant: before the first tensor is read,
the layout is checked against tensors that the library itself made; a build that differs is refused politely.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import numpy.typing as npt
from lathe.engine.errors import UnavailableError
from lathe.quantize.libllama import ggml

F32, I32 = 0, 26
"""ggml_type."""


class GgmlTensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h."""


GgmlTensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(GgmlTensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


class _Init(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("memory", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


@functools.cache
def _library() -> Any:
    lib = ggml()
    pointer, number, whole = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    for name, result, arguments in (
        ("ggml_init", pointer, [_Init]),
        ("ggml_free", None, [pointer]),
        ("ggml_new_tensor_3d", pointer, [pointer, ctypes.c_int, whole, whole, whole]),
        ("ggml_set_name", pointer, [pointer, ctypes.c_char_p]),
        ("ggml_mul_mat", pointer, [pointer, pointer, pointer]),
        ("ggml_tensor_overhead", number, []),
        ("ggml_nbytes", number, [pointer]),
        ("ggml_op_name", ctypes.c_char_p, [ctypes.c_int]),
        ("ggml_backend_buffer_is_host", ctypes.c_bool, [pointer]),
        ("ggml_backend_tensor_get", None, [pointer, pointer, number, number]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


@functools.cache
def operations() -> dict[str, int]:
    """Names of ggml's operations -> their numbers in this build, once the layout has been checked.

    Raises:
        UnavailableError: this build lays its tensors out in another way.
    """
    lib = _library()
    problem = _layout_problem(lib)
    if problem:
        raise UnavailableError(
            f"this build of llama.cpp cannot be watched while it computes: {problem}",
            hint="install the llama-cpp-python version of constraints.txt",
        )
    names: dict[str, int] = {}
    for number in range(256):
        name = (lib.ggml_op_name(number) or b"").decode()
        if not name or name in names:
            break
        names[name] = number
        if name == "GLU":  # the last one; the table has no end mark
            break
    return names


def _layout_problem(lib: Any) -> str:
    """Make a matrix product with known sizes and names and read it through our structure."""
    object_bytes = 32
    if lib.ggml_tensor_overhead() != ctypes.sizeof(GgmlTensor) + object_bytes:
        return f"its tensors take {lib.ggml_tensor_overhead() - object_bytes} bytes"
    context = lib.ggml_init(_Init(1 << 16, None, True))
    try:
        left = lib.ggml_set_name(lib.ggml_new_tensor_3d(context, F32, 64, 7, 3), b"left")
        right = lib.ggml_set_name(lib.ggml_new_tensor_3d(context, F32, 64, 5, 3), b"right")
        product = GgmlTensor.from_address(lib.ggml_mul_mat(context, left, right))
        seen = [product.src[0].contents, product.src[1].contents]
        checks = {
            "operation": lib.ggml_op_name(product.op) == b"MUL_MAT",
            "sources": [ctypes.addressof(tensor) for tensor in seen] == [left, right] and not product.src[2],
            "names": [tensor.name for tensor in seen] == [b"left", b"right"],
            "shape": list(product.ne) == [7, 5, 3, 1] and list(seen[1].ne) == [64, 5, 3, 1],
            "strides": list(seen[0].nb) == [4, 256, 1792, 5376],
            "type": product.type == F32 and not product.data and not product.buffer,
        }
    finally:
        lib.ggml_free(context)
    return ", ".join(f"{name} differ" for name, fine in checks.items() if not fine)


def values(tensor: GgmlTensor, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """The numbers of a computed tensor, shaped (ne3, ne2, ne1, ne0); a view where they are in host memory."""
    lib = _library()
    address = ctypes.addressof(tensor)
    size = lib.ggml_nbytes(address)
    if lib.ggml_backend_buffer_is_host(tensor.buffer):
        raw: Any = (ctypes.c_uint8 * size).from_address(tensor.data)
    else:
        raw = (ctypes.c_uint8 * size)()
        lib.ggml_backend_tensor_get(address, raw, 0, size)
    shape, strides = tuple(reversed(tensor.ne)), tuple(reversed(tensor.nb))
    return np.ndarray(shape, dtype, buffer=raw, strides=strides)


def weight_name(tensor: GgmlTensor) -> str:
    """The tensor's name in the model file: `CUDA0#blk.0.attn_k.weight#0` is `blk.0.attn_k.weight`."""
    name: str = tensor.name.decode("utf-8", "replace")
    parts = name.split("#")
    return parts[1] if len(parts) > 1 else name
