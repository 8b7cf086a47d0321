"""Whether this build's AMX kernels work on this machine.

Some compilers drop the stores that fill the tile configuration (they take the instruction that loads it for one that
reads eight bytes), and some hypervisors announce tiles and fault on them. llama.cpp trusts both, and dies, or computes
nonsense, in the first batch of a quantized model. So one product of two known matrices is computed with the installed
library, in a process that may die. Invariant: tiles are used only where that product was right.
"""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
from pathlib import Path

_LIMIT_S = 20

_PROBE = """
import ctypes, sys
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
base, cpu = ctypes.CDLL(sys.argv[1]), ctypes.CDLL(sys.argv[2])

class Init(Structure):
    _fields_ = [("size", c_size_t), ("memory", c_void_p), ("no_alloc", c_bool)]

def f(lib, name, result, *arguments):
    function = getattr(lib, name)
    function.restype, function.argtypes = result, arguments
    return function

p, n = c_void_p, c_size_t
registry = f(cpu, "ggml_backend_cpu_reg", p)()
device = f(base, "ggml_backend_reg_dev_get", p, p, n)(registry, 0)
address = f(base, "ggml_backend_reg_get_proc_address", p, p, c_char_p)(registry, b"ggml_backend_dev_get_extra_bufts")
kinds = ctypes.CFUNCTYPE(POINTER(p), p)(address)(device)
name = f(base, "ggml_backend_buft_name", c_char_p, p)
tiles, index = None, 0
while kinds and kinds[index]:
    tiles = kinds[index] if name(kinds[index]) == b"AMX" else tiles
    index += 1
if tiles is None:
    sys.exit(0)
K, ROWS, COLUMNS, F32, Q8_0 = 512, 64, 40, 0, 8
init, tensor = f(base, "ggml_init", p, Init), f(base, "ggml_new_tensor_2d", p, p, c_int, c_int64, c_int64)
weights_in, rest_in = (init(Init(1 << 20, None, True)) for _ in range(2))
weights, ones = tensor(weights_in, Q8_0, K, ROWS), tensor(rest_in, F32, K, COLUMNS)
size = f(base, "ggml_backend_buft_get_alloc_size", n, p, p)(tiles, weights)
buffer = f(base, "ggml_backend_buft_alloc_buffer", p, p, n)(tiles, size)
start = f(base, "ggml_backend_buffer_get_base", p, p)(buffer)
f(base, "ggml_backend_tensor_alloc", c_int, p, p, p)(buffer, weights, start)
product = f(base, "ggml_mul_mat", p, p, p, p)(rest_in, weights, ones)
backend = f(cpu, "ggml_backend_cpu_init", p)()
f(base, "ggml_backend_alloc_ctx_tensors", p, p, p)(rest_in, backend)
put = f(base, "ggml_backend_tensor_set", None, p, c_void_p, n, n)
blocks = (b"\\x00\\x3c" + b"\\x01" * 32) * (K // 32 * ROWS)  # scale 1.0 in half precision, 32 ones
put(weights, blocks, 0, len(blocks))
put(ones, (c_float * (K * COLUMNS))(*[1.0] * (K * COLUMNS)), 0, 4 * K * COLUMNS)
graph = f(base, "ggml_new_graph", p, p)(rest_in)
f(base, "ggml_build_forward_expand", None, p, p)(graph, product)
f(base, "ggml_backend_graph_compute", c_int, p, p)(backend, graph)
result = (c_float * (ROWS * COLUMNS))()
f(base, "ggml_backend_tensor_get", None, p, c_void_p, n, n)(product, result, 0, ctypes.sizeof(result))
sys.exit(0 if all(abs(value - K) < 0.02 * K for value in result) else 9)
"""


@functools.cache
def work() -> bool:
    """Try the tiles; True where there are none."""
    if not _announced():
        return True
    spec = importlib.util.find_spec("llama_cpp")
    folder = Path((spec.submodule_search_locations or ["."])[0]) / "lib" if spec else Path()
    libraries = [str(folder / f"libggml-{part}.so") for part in ("base", "cpu")]
    command = [sys.executable, "-I", "-S", "-c", _PROBE, *libraries]
    try:
        return subprocess.run(command, timeout=_LIMIT_S, check=False, capture_output=True).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _announced() -> bool:
    try:
        return " amx_tile " in Path("/proc/cpuinfo").read_text().replace("\n", " ")
    except OSError:
        return False  # not Linux: no kernel there hands out tiles
