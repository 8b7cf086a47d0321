"""What the types of a step cannot say: names of quantization types, patterns, what belongs together, missing files.

Found before a plan begins, so that its last step does not fail after a night. Invariant: only what is certain to fail
is a mistake; what an earlier step may still make is not looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lathe.engine.batch.places import MADE, READ, path_of, there
from lathe.engine.steps import ImatrixStep, KldStep, OnnxQuantizeStep, QuantizeStep, Step, TuneStep
from lathe.quantize.errors import QuantizeError
from lathe.quantize.plan import COPY
from lathe.quantize.types import file_type, tensor_type

Mistake = tuple[str, str]
"""(field, what is wrong with it)."""


def mistakes(step: Step, earlier: Sequence[Step], folder: Path) -> Iterator[Mistake]:
    """Say what will fail whatever the models are; files are looked for from `folder` on.

    Args:
        earlier: steps above, whose outputs are not there yet.
    """
    match step:
        case QuantizeStep():
            yield from _quantization(step)
        case OnnxQuantizeStep(mode="int8-static", text=None):
            yield "mode", "int8-static needs a calibration `text`"
        case KldStep() if (step.base is None) == (step.base_file is None):
            yield "base", "name the base model or a `base_file`, and not both"
        case TuneStep():
            for name in step.compare:
                yield from _known("compare", name, files=True)
    made = (getattr(one, field, None) for one in earlier for field in MADE)
    coming = {path_of(name, folder) for name in made if name} - {None}
    unnamed = any(isinstance(one, ImatrixStep) for one in earlier)  # it may be put into a folder, under its own name
    for field in READ:
        if unnamed and field in ("imatrix", "merge", "matrices"):
            continue
        value = getattr(step, field, None)
        for name in value if isinstance(value, tuple) else (value,):
            if not name or "${" in name:
                continue
            path = path_of(name, folder)
            if path not in coming and (path is None or not there(path)):
                yield field, f"there is no file {name}"


def _quantization(step: QuantizeStep) -> Iterator[Mistake]:
    if step.type.upper() != COPY:
        yield from _known("type", step.type, files=True)
    for field in ("output_tensor_type", "token_embedding_type"):
        yield from _known(field, getattr(step, field), files=False)
    for pattern, kind in step.tensor_types.items():
        yield from _known("tensor_types", kind, files=False)
        try:
            re.compile(pattern)
        except re.error as error:
            yield "tensor_types", f"{pattern!r} is no regular expression: {error}"


def _known(field: str, name: str | None, *, files: bool) -> Iterator[Mistake]:
    if name is None or "${" in name:
        return
    try:
        (file_type if files else tensor_type)(name)
    except QuantizeError as error:
        yield field, f"{error.message}; {error.hint}" if error.hint else error.message
