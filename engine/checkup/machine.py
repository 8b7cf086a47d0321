"""Processor, memory, disk and limits of this machine."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import psutil
from lathe.engine.checkup.install import llama_cpp
from lathe.engine.estimate import size
from lathe.engine.telemetry.files import text
from lathe.engine.telemetry.host import usable_cores
from lathe.engine.telemetry.memory import read_memory
from lathe.engine.workbench import Finding

_GIB = 1024**3
_FLAGS = {
    "AVX2": "avx2", "FMA": "fma", "F16C": "f16c", "AVX512": "avx512f", "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16", "AMX_INT8": "amx_int8", "NEON": "asimd", "DOTPROD": "asimddp", "I8MM": "i8mm",
    "SVE": "sve",
}  # fmt: skip
"""ggml's name of a feature -> the kernel's."""
_FEW_FILES = 256


def processor_name(root: Path = Path("/")) -> str:
    """The processor's model, as the kernel names it."""
    return _field(text(root / "proc/cpuinfo") or "", "model name") or platform.processor() or platform.machine()


def processor(root: Path = Path("/")) -> list[Finding]:
    """Model, cores and vector instructions."""
    content, name = text(root / "proc/cpuinfo") or "", processor_name(root)
    physical = psutil.cpu_count(logical=False)
    cores = f"{usable_cores()} usable threads" + (f", {physical} cores" if physical else "")
    found = sorted(features(root))
    level, fix = "ok", ""
    if content and not {"AVX2", "NEON"} & set(found):
        level, fix = "warn", "use a newer processor: without AVX2 or NEON generation is several times slower"
    return [
        Finding(area="cpu", name="processor", value=f"{name}, {cores}"),
        Finding(area="cpu", name="instructions", value=" ".join(found) or "unknown", level=level, fix=fix),
    ]


def features(root: Path = Path("/")) -> set[str]:
    """Vector instructions of this processor, by ggml's names."""
    content = text(root / "proc/cpuinfo") or ""
    flags = set((_field(content, "flags") or _field(content, "Features") or "").split())
    if not content and platform.machine() == "arm64":  # Apple chips all have these
        return {"NEON", "DOTPROD"}
    return {name for name, flag in _FLAGS.items() if flag in flags}


def build_for_processor(built: tuple[str, ...], root: Path = Path("/")) -> Finding:
    """Whether llama.cpp was compiled for what this processor offers."""
    wide = {"AVX2", "AVX512", "AVX512_VNNI", "AMX_INT8", "NEON", "DOTPROD", "I8MM", "SVE"}
    unused = sorted((features(root) & wide) - set(built))
    value = " ".join(name for name in built if name in _FLAGS) or "no vector instructions"
    if not unused:
        return Finding(area="llama.cpp", name="instructions", value=value)
    return Finding(
        area="llama.cpp",
        name="instructions",
        value=f"{value}; this processor also has {' '.join(unused)}",
        level="warn" if {"AVX2", "NEON"} & set(unused) else "info",
        fix=llama_cpp("native"),
    )


def tiles(works: Callable[[], bool], root: Path = Path("/")) -> list[Finding]:
    """Whether AMX, where it is announced, computes what it should; some builds and hypervisors get it wrong."""
    if "AMX_INT8" not in features(root):
        return []
    if works():
        return [Finding(area="llama.cpp", name="AMX tiles", value="work")]
    value = "announced by the processor, but a test product is wrong or crashes: Lathe does not use them"
    return [Finding(area="llama.cpp", name="AMX tiles", value=value, level="info")]


def memory(root: Path = Path("/")) -> list[Finding]:
    """Main memory and what limits it."""
    known = read_memory(root)
    machine = int(psutil.virtual_memory().total)
    value = f"{size(known.available)} free of {size(known.total)}"
    if known.total < machine:
        value += f" (a control group limits this process; the machine has {size(machine)})"
    level, fix = "ok", ""
    if known.available < _GIB:
        level, fix = "warn", "end other programs, or expect only the smallest models to load"
    return [Finding(area="memory", name="RAM", value=value, level=level, fix=fix), _open_files()]


def disk(workspace: Path) -> list[Finding]:
    """Room for converted models; a conversion needs the size of its source again."""
    folder = workspace
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return [Finding(area="disk", name=str(folder), value=str(error), level="fail", fix="set LATHE_HOME elsewhere")]
    level = "fail" if usage.free < _GIB // 4 else "warn" if usage.free < 5 * _GIB else "ok"
    fix = "" if level == "ok" else "free disk space, or set LATHE_HOME to a folder on a larger disk"
    value = f"{size(usage.free)} free of {size(usage.total)}"
    return [Finding(area="disk", name=str(folder), value=value, level=level, fix=fix)]


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 0 <= soft < _FEW_FILES
    raised = _FEW_FILES * 4 if hard < 0 else min(hard, _FEW_FILES * 4)
    return Finding(
        area="memory",
        name="open files",
        value="no limit" if soft < 0 else f"limit {soft}",
        level="warn" if few else "ok",
        fix=f"ulimit -n {raised}" if few else "",
    )


def _field(content: str, name: str) -> str | None:
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", content, re.MULTILINE)
    return found[1].strip() if found else None


def system() -> Finding:
    """Kernel, machine and Python, for reports."""
    value = f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}"
    return Finding(area="cpu", name="system", value=value + (", root" if os.geteuid() == 0 else ""), level="info")
