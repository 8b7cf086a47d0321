"""Plans: YAML, TOML or JSON files whose steps are the dataclasses of `lathe.engine.steps`.

    schema: 1
    name: nightly
    steps:
      - {id: f16, run: convert, model: stdlib-4m, outtype: f16}
      - {id: q4, run: quantize, model: "${f16.model}", type: Q4_K_M}
      - {id: ppl, run: perplexity, model: "${q4.model}", expect: ["perplexity <= 12"]}

`${ID.model}`, `${ID.path}` and `${ID.figures.NAME}` stand for results of earlier steps. Invariant: what `load` returns
can run; every mistake is reported at once, with file, line, column and the nearest right name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
from lathe.engine.batch import sense
from lathe.engine.batch.document import Document, check_fields, near, read
from lathe.engine.batch.gates import Gate, parse_gate
from lathe.engine.errors import ConfigError
from lathe.engine.steps import Step

SCHEMA = 1
_PLAN_KEYS = ("schema", "name", "steps")
_STEP_KEYS = ("id", "run", "needs", "expect", "timeout_s")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_TARGET = re.compile(r"([A-Za-z0-9_-]+)\.(model|path|figures\.[A-Za-z0-9_@.-]+)")

STEP_TYPES: dict[str, Any] = {str(kind.__struct_config__.tag): kind for kind in get_args(Step)}


class PlannedStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a plan with what surrounds it."""

    id: str
    step: Step
    """With `${...}` still in its strings."""
    needs: tuple[str, ...] = ()
    """Ids of steps that must have succeeded: the named ones and those referred to."""
    expect: tuple[Gate, ...] = ()
    timeout_s: float | None = None
    line: int = 0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A validated pipeline, in order of execution."""

    name: str
    path: str
    steps: tuple[PlannedStep, ...]


def load(path: Path) -> Plan:
    """Read and validate a plan.

    Raises:
        ConfigError: listing every mistake. MissingError: there is no such file.
    """
    document = read(path)
    mistakes: list[str] = []
    plan = _plan(document, mistakes)
    if mistakes:
        more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
        raise ConfigError("\n".join(mistakes), hint=f"nothing was run{more}")
    return plan


def substitute(step: Step, results: dict[str, dict[str, object]]) -> Step:
    """The step with every `${...}` replaced by an earlier step's result."""

    def value_of(match: re.Match[str]) -> str:
        step_id, _, field = match.group(1).partition(".")
        value = results[step_id].get(field)
        if value is None:
            raise ConfigError(f"step {step_id!r} has no {field!r} to refer to", hint="see its outcome in the report")
        return str(value)

    def replace(value: object) -> object:
        if isinstance(value, str):
            return _REFERENCE.sub(value_of, value)
        if isinstance(value, list | tuple):
            return [replace(item) for item in value]
        if isinstance(value, dict):
            return {key: replace(item) for key, item in value.items()}
        return value

    replaced: Step = msgspec.convert(replace(msgspec.to_builtins(step)), Step)
    return replaced


def _plan(document: Document, mistakes: list[str]) -> Plan:
    tree = document.tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{document.at()}: a plan is a mapping with `name` and `steps`")
    mistakes += [
        f"{document.at(key)}: unknown key {key!r}{near(str(key), _PLAN_KEYS)}" for key in tree if key not in _PLAN_KEYS
    ]
    if tree.get("schema", SCHEMA) != SCHEMA:
        mistakes.append(f"{document.at('schema')}: schema {tree['schema']!r} is not known; this Lathe reads {SCHEMA}")
    listed = tree.get("steps")
    if not isinstance(listed, list) or not listed:
        raise ConfigError(
            "\n".join([*mistakes, f"{document.at('steps')}: `steps` must be a list with at least one step"])
        )
    planned: list[PlannedStep] = []
    seen: set[str] = set()
    for index, raw in enumerate(listed):
        step = _planned(document, index, raw, seen, mistakes)
        if step is not None:
            above = [one.step for one in planned]
            found = sense.mistakes(step.step, above, Path.cwd())
            mistakes += [f"{document.at('steps', index, field)}: {what}" for field, what in found]
            planned.append(step)
    return Plan(name=str(tree.get("name") or document.path.stem), path=str(document.path), steps=tuple(planned))


def _planned(document: Document, index: int, raw: object, seen: set[str], mistakes: list[str]) -> PlannedStep | None:
    where = ("steps", index)
    if not isinstance(raw, dict):
        mistakes.append(f"{document.at(*where)}: a step is a mapping with `run`")
        return None
    step_id = str(raw.get("id") or f"{raw.get('run', 'step')}-{index + 1}")
    if not _ID.fullmatch(step_id) or step_id in seen:
        problem = "is used twice" if step_id in seen else "must be letters, digits, `_` and `-`"
        mistakes.append(f"{document.at(*where, 'id')}: id {step_id!r} {problem}")
    needs = _needs(document, where, raw, seen, mistakes)
    gates = tuple(_gates(document, where, raw.get("expect", []), mistakes))
    seen.add(step_id)
    step = _step(document, where, raw, mistakes)
    timeout = raw.get("timeout_s")
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0):
        mistakes.append(f"{document.at(*where, 'timeout_s')}: timeout_s must be a number of seconds above 0")
    if step is None:
        return None
    return PlannedStep(id=step_id, step=step, needs=needs, expect=gates, timeout_s=timeout, line=document.line(*where))


def _step(document: Document, where: tuple[object, ...], raw: dict[str, Any], mistakes: list[str]) -> Step | None:
    run = raw.get("run")
    kind = STEP_TYPES.get(str(run))
    if kind is None:
        known = tuple(STEP_TYPES)
        what = "`run` is missing" if run is None else f"unknown step {run!r}"
        mistakes.append(f"{document.at(*where, 'run')}: {what}{near(str(run), known)} (known: {', '.join(known)})")
        return None
    fields = {key: value for key, value in raw.items() if key not in _STEP_KEYS}
    if not check_fields(document, where, kind, fields, mistakes, what=f"step {run!r}", also=_STEP_KEYS):
        return None
    step: Step = msgspec.convert(fields | {"run": run}, kind)
    return step


def _needs(
    document: Document, where: tuple[object, ...], raw: dict[str, Any], seen: set[str], mistakes: list[str]
) -> tuple[str, ...]:
    """Ids this step waits for: those listed and those referred to; all must stand above it."""
    listed = raw.get("needs", [])
    if not isinstance(listed, list):
        mistakes.append(f"{document.at(*where, 'needs')}: needs must be a list of step ids")
        listed = []
    needed = [(str(step_id), "needs") for step_id in listed]
    for key, value in raw.items():
        for target in _REFERENCE.findall(str(value)):
            match = _TARGET.fullmatch(target)
            if match is None:
                place = document.at(*where, key)
                mistakes.append(f"{place}: ${{{target}}} is not ${{ID.model}}, ${{ID.path}} or ${{ID.figures.NAME}}")
            else:
                needed.append((match.group(1), key))
    for step_id, key in needed:
        if step_id not in seen:
            hint = near(step_id, seen)
            mistakes.append(f"{document.at(*where, key)}: no step {step_id!r} stands above this one{hint}")
    return tuple(dict.fromkeys(step_id for step_id, _ in needed))


def _gates(document: Document, where: tuple[object, ...], raw: object, mistakes: list[str]) -> Iterator[Gate]:
    for index, text in enumerate(raw if isinstance(raw, list) else [raw]):
        try:
            yield parse_gate(str(text))
        except ConfigError as error:
            mistakes.append(f"{document.at(*where, 'expect', index)}: {error.message}")
