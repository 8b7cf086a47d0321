"""How to install what is missing, as commands that fit this very Python. Pure but for asking whether pip is there."""

from __future__ import annotations

import importlib.util
import shlex
import sys

_FLAGS = {
    "cuda": "-DGGML_CUDA=on",
    "hip": "-DGGML_HIP=on",
    "vulkan": "-DGGML_VULKAN=on",
    "metal": "-DGGML_METAL=on",
    "native": "-DGGML_NATIVE=on",
}


def pip(*arguments: str) -> str:
    """A pip command for the interpreter that runs Lathe; uv's where the environment has no pip."""
    words = " ".join(map(shlex.quote, arguments))
    python = shlex.quote(sys.executable)
    if importlib.util.find_spec("pip") is None:
        verb, _, rest = words.partition(" ")
        return f"uv pip {verb} --python {python} {rest}"
    return f"{python} -m pip {words}"


def extra(name: str) -> str:
    """Install an extra, with and without a network."""
    wanted = f"lathe-llm[{name}]"
    carried = pip("install", "--no-index", "--find-links", "wheels", wanted)
    return (
        f"{pip('install', wanted)}; without a network: `pip download -d wheels {shlex.quote(wanted)}` "
        f"on a connected machine of this kind, carry the folder here, then {carried}"
    )


def llama_cpp(backend: str) -> str:
    """Build llama-cpp-python anew for a backend; the source is the pinned one."""
    build = pip("install", "--force-reinstall", "--no-deps", "--no-cache-dir", "--no-binary", "llama-cpp-python",
                "llama-cpp-python>=0.3.36,<0.4")  # fmt: skip
    return f'CMAKE_ARGS="{_FLAGS[backend]}" {build}'
