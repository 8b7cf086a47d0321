"""A conversion by llama.cpp's own converter, in a child: `python -m lathe.engine.toolchain.official`.

The converter asks transformers to trust code of the checkpoint; the child refuses such code whatever is asked, and the
checkpoint was refused before if it has any. Invariant: what the converter wrote passes our own header check and the
comparison of tokenizers before it is published.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from lathe.engine.checkup.install import extra
from lathe.engine.errors import DataError, UnavailableError
from lathe.engine.jobs import helper
from lathe.engine.toolchain.store import SCRIPT
from lathe.quantize.artefact import new_artefact, require_space
from lathe.quantize.checkpoint import read_checkpoint, refuse_remote_code
from lathe.quantize.convert.conformance.conform import Conformance, conform
from lathe.quantize.convert.vocabulary.pretokenizers import CANDIDATES
from lathe.quantize.errors import UnsafeError, UnsupportedError
from lathe.quantize.gguf.header import read_header

_PRE = "tokenizer.ggml.pre"
_NEEDED = ("torch", "transformers")
_WEIGHTS = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 2, "auto": 2}


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is to do."""

    toolchain: str
    source: str
    output: str
    outtype: str
    pre: str = "default"
    """What to call the pre-tokenizer where the converter does not know its fingerprint."""


class Done(msgspec.Struct, frozen=True):
    """It did."""

    guessed: bool = False
    """The converter did not know the pre-tokenizer."""


class OfficialReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came out."""

    architecture: str
    tensors: int
    parameters: int
    bytes: int
    conformance: Conformance | None
    """None where the checkpoint has no tokenizer.json to compare with."""


def convert(toolchain: Path, source: Path, output: Path, *, outtype: str, force: bool = False) -> OfficialReport:
    """Convert a checkpoint folder whose architecture ours does not know.

    Raises:
        UnavailableError: torch or transformers is not installed.
        UnsafeError: the folder brings code.
        UnsupportedError: the converter does not know the architecture either.
        DataError: its tokenizer reads ordinary text otherwise than the original (not with `force`).
    """
    checkpoint = read_checkpoint(source)
    refuse_remote_code(checkpoint)
    if found := sorted(path.name for path in source.glob("*.py")):
        raise UnsafeError(f"{source} brings Python code ({found[0]}), and it is never run", hint="remove the file")
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UnavailableError(f"llama.cpp's own converter needs {', '.join(missing)}", hint=extra("onnx"))
    size = _WEIGHTS[outtype] * checkpoint.parameters
    require_space(output.parent, size)
    with new_artefact(output, inputs=checkpoint.shards, expected_bytes=size, force=force) as part:
        order = Order(toolchain=str(toolchain), source=str(source), output=str(part), outtype=outtype)
        done = helper.ask(__name__, order, Done, role="llama.cpp's converter")
        header = read_header(part)
        tokenizer = source / "tokenizer.json"
        conformance = None
        if tokenizer.is_file():
            names = list(CANDIDATES) if done.guessed else []
            conformance = conform(part, tokenizer, [{_PRE: name} for name in names] or [{}])
            if done.guessed:
                chosen = msgspec.structs.replace(order, pre=names[conformance.chosen])
                helper.ask(__name__, chosen, Done, role="llama.cpp's converter")
                header = read_header(part)
        if conformance is not None and not conformance.agrees and not force:
            example = conformance.ordinary[0]
            raise DataError(
                f"the converted tokenizer reads {example.text[:40]!a} as {example.converted}, the original as "
                f"{example.original}", hint="force it to have the file anyway", code="E_CONFORMANCE",
            )  # fmt: skip
    return OfficialReport(
        architecture=header.architecture or "", tensors=len(header.tensors),
        parameters=sum(tensor.elements for tensor in header.tensors), bytes=header.file_bytes, conformance=conformance,
    )  # fmt: skip


def _run(order: Order) -> Done:
    _refuse_code()
    sys.path.insert(0, order.toolchain)
    sys.argv = [SCRIPT, order.source, "--outfile", order.output, "--outtype", order.outtype]
    try:
        guessed = _forgive_unknown_fingerprints(order.pre)
        specification = importlib.util.spec_from_file_location("convert_hf_to_gguf", Path(order.toolchain) / SCRIPT)
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        module.main()
    except ImportError as error:  # it imports what a tokenizer needs when it meets one
        raise UnavailableError(
            f"llama.cpp's own converter needs {error.name or _line(error)} for this checkpoint", hint=extra("onnx")
        ) from error
    except NotImplementedError as error:
        raise UnsupportedError(f"llama.cpp's converter does not know it either: {_line(error)}") from error
    except SystemExit as error:
        if error.code:
            raise UnsupportedError(
                f"llama.cpp's converter gave up (exit {error.code}); the job's log says why"
            ) from error
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UnsupportedError(f"llama.cpp's converter failed: {type(error).__name__}: {_line(error)}") from error
    return Done(guessed=bool(guessed))


def _forgive_unknown_fingerprints(pre: str) -> list[str]:
    """Let the converter go on where it knows no name for a pre-tokenizer; the list tells afterwards whether it did."""
    base = importlib.import_module("conversion.base")
    known = base.TextModel.get_vocab_base_pre
    guessed: list[str] = []

    def named(self: Any, tokenizer: Any) -> str:
        try:
            return str(known(self, tokenizer))
        except NotImplementedError:
            guessed.append(pre)
            return pre

    base.TextModel.get_vocab_base_pre = named
    return guessed


def _refuse_code() -> None:
    """Before anything imports the names from there."""
    from transformers import dynamic_module_utils

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise UnsafeError("the checkpoint asks for its own Python code, which is never run")

    dynamic_module_utils.get_class_from_dynamic_module = refuse
    dynamic_module_utils.get_cached_module_file = refuse


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


if __name__ == "__main__":
    helper.serve(Order, _run)
