"""Generate text for a list of prompts: the batch twin of the Playground.

Invariant: one row per prompt, in the order given, written as it finishes; a prompt that fails is a row with `error`.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
from lathe.engine.errors import DataError, ExitCode, LatheError, UsageError
from lathe.engine.generation import GenerationRequest, Message
from lathe.engine.jobs.services import ServiceContext
from lathe.engine.jobs.values import Artefact, Figure, Outcome
from lathe.engine.steps import GenerateStep
from lathe.engine.transcript import collect
from lathe.quantize.artefact import file_sha256, new_artefact


class _Line(msgspec.Struct, frozen=True):
    """One line of a prompts file in JSON."""

    prompt: str | None = None
    messages: tuple[Message, ...] = ()


async def run(step: GenerateStep, context: ServiceContext) -> Outcome:
    """Answer every prompt of the step with its model."""
    requests = _requests(step)
    if not requests:
        raise UsageError("generate: no prompts given", hint="give `prompts`, `messages` or a `file`")
    await context.workbench.load(step.model, step.options)
    rows: list[dict[str, Figure]] = []
    for number, request in enumerate(requests, 1):
        await context.progress("generating", number - 1, len(requests), "prompt")
        rows.append(await _answer(request, context))
    await context.progress("generating", len(requests), len(requests), "prompt")
    failed = sum(1 for row in rows if "error" in row)
    artefacts = (_write(Path(step.output), rows),) if step.output else ()
    figures: dict[str, Figure] = {"prompts": len(rows), "failed": failed}
    exit_code = ExitCode.NEGATIVE if failed else ExitCode.OK
    return Outcome(artefacts=artefacts, figures=figures, rows=tuple(rows), exit=int(exit_code))


async def _answer(request: GenerationRequest, context: ServiceContext) -> dict[str, Figure]:
    shown = request.prompt if request.prompt is not None else request.messages[-1].content
    row: dict[str, Figure] = {"prompt": shown}
    try:
        answer = await collect(context.workbench.generate(request))
    except LatheError as error:
        context.log(f"{error.message}", "error")
        return row | {"error": error.message, "code": error.code}
    row |= {"text": answer.text, "finish": answer.finish}
    if answer.usage:
        row |= {"prompt_tokens": answer.usage.prompt_tokens, "completion_tokens": answer.usage.completion_tokens}
    if answer.timing:
        row |= {"ttft_s": answer.timing.first_token_s, "seed": answer.timing.seed}
    context.log(f"{len(answer.text)} characters, finish {answer.finish}")
    return row


def _requests(step: GenerateStep) -> list[GenerationRequest]:
    asked = [_Line(prompt=prompt) for prompt in step.prompts]
    asked += [_Line(messages=step.messages)] if step.messages else []
    asked += _read(Path(step.file)) if step.file else []
    return [_request(step, line) for line in asked]


def _request(step: GenerateStep, line: _Line) -> GenerationRequest:
    common = {"model": step.model, "max_tokens": step.max_tokens, "sampling": step.sampling, "client": "batch"}
    if not line.messages and not step.chat:
        return GenerationRequest(prompt=line.prompt or "", **common)  # type: ignore[arg-type]
    messages = line.messages or (Message("user", line.prompt or ""),)
    if step.system:
        messages = (Message("system", step.system), *messages)
    return GenerationRequest(messages=messages, **common)  # type: ignore[arg-type]


def _read(path: Path) -> list[_Line]:
    lines: list[_Line] = []
    # Not `splitlines`: it also breaks at U+2028 and U+0085, which may stand in a prompt.
    for number, text in enumerate(path.read_text("utf-8").split("\n"), 1):
        if not text.strip():
            continue
        if not text.lstrip().startswith("{"):
            lines.append(_Line(prompt=text))
            continue
        try:
            lines.append(msgspec.json.decode(text, type=_Line))
        except msgspec.MsgspecError as error:
            raise DataError(f"{path}:{number}: {error}", hint="each line is a prompt, or JSON with `prompt`") from error
    return lines


def _write(path: Path, rows: list[dict[str, Figure]]) -> Artefact:
    with new_artefact(path, force=True) as part:
        part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return Artefact(name=path.name, path=str(path), format="json", bytes=path.stat().st_size, sha256=file_sha256(path))
