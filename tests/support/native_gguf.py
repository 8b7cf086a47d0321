"""Let llama.cpp load GGUF files in children that may die: which files, if any, kill it.

Run as a program it loads the files that it reads from standard input, one path per line, and writes one line for
each before and after; the parent starts a new child behind a file that killed one. One load in the life of the parent
costs nothing, so a whole list of files shares a child as long as it lives.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def load(path: str, *, vocab_only: bool, run: bool) -> str:
    """Load one file as the workers do; `run` also makes a context and decodes a token."""
    import llama_cpp

    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = vocab_only
    parameters.no_alloc = not vocab_only and not run
    parameters.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP if run else llama_cpp.LLAMA_LOAD_MODE_NONE
    model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
    if not model:
        return "error"
    try:
        if not run:
            return "ok"
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_threads, options.n_threads_batch = 64, 64, 1, 1
        context = llama_cpp.llama_init_from_model(model, options)
        if not context:
            return "error"
        token = (llama_cpp.llama_token * 1)(1)
        failed = llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(token, 1))
        llama_cpp.llama_free(context)
        return "error" if failed else "ok"
    finally:
        llama_cpp.llama_model_free(model)


def outcomes(paths: Sequence[Path], *arguments: str) -> dict[Path, str]:
    """Load every file in children; the outcome is `ok`, `error` or `signal N`."""
    found: dict[Path, str] = {}
    left = list(paths)
    while left:
        result = subprocess.run(
            [sys.executable, __file__, *arguments],
            input="\n".join(map(str, left)),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=170,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # an abort would start a debugger first
        )
        lines = result.stdout.splitlines()
        found.update(zip(left, lines, strict=False))
        if len(lines) < len(left):
            if result.returncode >= 0:
                raise AssertionError(f"the loading child failed: {result.stderr[-2000:]}")
            found[left[len(lines)]] = f"signal {-result.returncode}"
        left = left[len(lines) + 1 :]
    return found


def main() -> None:
    import llama_cpp

    @llama_cpp.llama_log_callback
    def quiet(level: int, text: bytes, data: ctypes.c_void_p) -> None:
        """Swallow llama.cpp's log."""

    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    for line in sys.stdin.read().splitlines():
        vocabulary = load(line, vocab_only=True, run=False)
        outcome = load(line, vocab_only=False, run="run" in sys.argv)
        print(outcome if vocabulary == "ok" else vocabulary, flush=True)


if __name__ == "__main__":
    main()
