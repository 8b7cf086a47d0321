"""ONNX Runtime: whether it is there, on what it runs, and how a file becomes a session.

Invariant: the files that a model would open are checked before the library sees it, and a GPU that was asked for and is
not used is told, never silently replaced.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

from lathe.engine.checkup.install import extra
from lathe.engine.errors import DataError, UnavailableError
from lathe.engine.worker.messages import LoadOptions
from lathe.quantize.onnx_files import OnnxFile, read_onnx

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_WARNING = 2


def runtime() -> Any:
    """The library.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise UnavailableError("ONNX models need onnxruntime, which is not installed", hint=extra("onnx")) from error
    return onnxruntime


class Session:
    """A loaded graph and the device it runs on."""

    def __init__(self, path: Path, options: LoadOptions, threads: int) -> None:
        """Check and load a graph.

        Raises:
            DataError: ONNX Runtime does not take it.
            QuantizeError: the file is no sound ONNX model, or names files outside its folder.
        """
        self.file: OnnxFile = read_onnx(path)
        ort = runtime()
        settings = ort.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
        settings.log_severity_level = _WARNING + 1
        settings.enable_mem_pattern = False  # shapes differ from call to call
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = _providers(ort, options)
        try:
            self.native: Any = ort.InferenceSession(str(path), settings, providers=providers)
        except Exception as error:
            line = str(error).strip().splitlines()[0][:300]
            raise DataError(f"ONNX Runtime does not load {path.name}: {line}", code="E_ONNX") from error
        self.device: str = "cuda" if _CUDA in self.native.get_providers() else "cpu"
        if _CUDA in providers and self.device == "cpu":
            sys.stderr.write("ONNX Runtime could not use CUDA and runs on the CPU (`lathe doctor` says why)\n")
        self.inputs: dict[str, Any] = {one.name: one for one in self.native.get_inputs()}
        self.outputs: dict[str, Any] = {one.name: one for one in self.native.get_outputs()}

    @property
    def system(self) -> str:
        """One line about the library and its providers."""
        return f"onnxruntime {runtime().__version__}, {', '.join(self.native.get_providers())}"


def _providers(ort: Any, options: LoadOptions) -> list[str]:
    """CUDA where the library was built for it, a driver is there and nobody forbade it; the CPU in any case."""
    if options.gpu_layers == 0 or _CUDA not in ort.get_available_providers() or not _driver():
        return [_CPU]
    ort.preload_dlls()  # the CUDA libraries that pip installed, where they are
    return [_CUDA, _CPU]


def _driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
