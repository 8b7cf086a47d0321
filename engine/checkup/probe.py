"""What the installed llama.cpp is and can do, asked in a child: `python -m lathe.engine.checkup.probe FD`.

Loading it may kill a process (a build for another processor, a broken driver), and that is an answer, too. Invariant:
the engine itself never imports it.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from lathe.engine import wire
from lathe.engine.errors import Failure, LatheError, describe
from lathe.engine.process import spawn

_LIMIT_S = 60.0
"""A first CUDA context on a cold machine takes tens of seconds."""


class LlamaDevice(msgspec.Struct, frozen=True):
    """A device of ggml's registry."""

    name: str
    description: str
    kind: str
    backend: str


class LlamaFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The build."""

    version: str
    """Of llama-cpp-python."""
    ggml: str
    """Of the tensor library: tells how old the vendored llama.cpp is."""
    commit: str
    features: tuple[str, ...]
    """Processor features compiled in and found: `AVX2`, `AMX_INT8`, ..."""
    offload: bool
    """Built with a GPU backend, and a device for it is there."""
    devices: tuple[LlamaDevice, ...]


class _Answer(msgspec.Struct, frozen=True):
    """What the child sends: one of the two."""

    facts: LlamaFacts | None = None
    failure: Failure | None = None


async def llama_facts(log_folder: Path) -> LlamaFacts | Failure:
    """Ask a child; a failure says how it died."""
    try:
        child = await spawn("lathe.engine.checkup.probe", role="llama.cpp", log_path=log_folder / "probe.log")
    except (OSError, LatheError) as error:
        return describe(error)
    try:
        async with asyncio.timeout(_LIMIT_S):
            answers: AsyncIterator[_Answer] = child.messages(_Answer)
            async for answer in answers:
                if found := answer.facts or answer.failure:
                    return found
            return (await child.wait()).failure("llama.cpp")
    except TimeoutError:
        return Failure("E_TIMEOUT", f"llama.cpp did not start within {_LIMIT_S:.0f} s")
    except LatheError as error:
        return describe(error)
    finally:
        await child.stop(grace_s=0.5)


def gather() -> LlamaFacts:
    """Load the library and ask it. In the child only."""
    from lathe.engine.native.devices import commit, devices
    from lathe.quantize.libllama import bindings, ggml

    lib = bindings()
    tensor_library = ggml()
    tensor_library.ggml_version.restype = ctypes.c_char_p
    system = lib.llama_print_system_info().decode("utf-8", "replace")
    pairs = [part.partition("=") for part in system.replace(":", "|").split("|")]
    import llama_cpp

    return LlamaFacts(
        version=llama_cpp.__version__,
        ggml=tensor_library.ggml_version().decode(),
        commit=commit(),
        features=tuple(name.strip() for name, _, value in pairs if value.strip() == "1"),
        offload=bool(lib.llama_supports_gpu_offload()),
        devices=tuple(LlamaDevice(one.name, one.description, one.kind, one.backend) for one in devices()),
    )


def main() -> None:
    """Answer once and end."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    try:
        answer = _Answer(facts=gather())
    except Exception as error:  # noqa: BLE001 - whatever keeps it from loading is the answer
        answer = _Answer(failure=describe(error))
    channel.sendall(wire.frame(answer))


if __name__ == "__main__":
    main()
