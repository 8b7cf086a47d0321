"""The fake the fronts are tested against keeps the real protocol's shape and rules."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest
from lathe.engine.errors import DoesNotFit, MissingError, UnavailableError, UsageError
from lathe.engine.events import Event, JobChanged
from lathe.engine.generation import Delta, GenerationRequest, Message
from lathe.engine.steps import QuantizeStep
from lathe.engine.workbench import Workbench
from support import scripted_text
from support.scripted_workbench import ScriptedWorkbench

PROTOCOL = [name for name, value in vars(Workbench).items() if inspect.isfunction(value) and not name.startswith("_")]


@pytest.mark.parametrize("name", PROTOCOL)
def test_every_method_of_the_protocol_with_its_signature(name: str) -> None:
    def shape(function: Any) -> list[tuple[str, Any]]:
        parameters = inspect.signature(function).parameters.values()
        return [(p.name, p.default) for p in parameters]

    assert shape(getattr(ScriptedWorkbench, name)) == shape(getattr(Workbench, name))


async def _answer(workbench: ScriptedWorkbench, **fields: Any) -> list[Delta]:
    request = GenerationRequest(model="stdlib-4m-f16", messages=(Message("user", "hi"),), **fields)
    return [delta async for delta in workbench.generate(request)]


async def test_an_answer_is_the_script_and_ends_with_its_cost() -> None:
    deltas = await _answer(ScriptedWorkbench(answer="one two three"))
    assert "".join(delta.text for delta in deltas) == "one two three"
    assert deltas[-1].finish == "stop"
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.completion_tokens == 3


async def test_stop_strings_and_limits_end_an_answer() -> None:
    stopped = await _answer(ScriptedWorkbench(answer="one two three"), stop=("two",))
    assert ("".join(d.text for d in stopped), stopped[-1].stop_text) == ("one ", "two")
    limited = await _answer(ScriptedWorkbench(answer="one two three"), max_tokens=2)
    assert ("".join(d.text for d in limited), limited[-1].finish) == ("one two", "length")


async def test_cancelling_a_request_ends_its_stream() -> None:
    workbench = ScriptedWorkbench(answer="a b c d")
    request = GenerationRequest(model="stdlib-4m-f16", prompt="x")
    finish = None
    async for delta in workbench.generate(request):
        live = next(r for r in workbench.requests.values() if not r.finished and r.model == "stdlib-4m-f16")
        if live.generated == 2 and delta.text:
            await workbench.cancel_request(live.id)
        finish = delta.finish or finish
    assert finish == "cancelled"


async def test_events_reach_subscribers_and_a_job_runs_to_its_end() -> None:
    workbench = ScriptedWorkbench(living=False)
    seen: list[Event] = []

    async def listen() -> None:
        async for event in workbench.events():
            seen.append(event)  # noqa: PERF401

    task = asyncio.ensure_future(listen())
    await asyncio.sleep(0)
    job = await workbench.submit(QuantizeStep(model="stdlib-4m"))
    assert (await workbench.wait(job.id)).state == "done"
    await asyncio.sleep(0)
    task.cancel()
    states = [event.job.state for event in seen if isinstance(event, JobChanged)]
    assert states == ["queued", "running", "done"]


async def test_refusals() -> None:
    workbench = ScriptedWorkbench()
    with pytest.raises(DoesNotFit):
        await workbench.load("llama-3.3-70b-q4_k_m")
    with pytest.raises(MissingError):
        await workbench.model("nothing")
    workbench.fail["models"] = UsageError("once")
    with pytest.raises(UsageError):
        await workbench.models()
    await workbench.models()
    workbench.lost = True
    with pytest.raises(UnavailableError):
        await workbench.snapshot()


async def test_log_pages_continue() -> None:
    workbench = ScriptedWorkbench()
    first = await workbench.job_log("j-118", 0, 2)
    rest = await workbench.job_log("j-118", first.next, 100)
    last = await workbench.job_log("j-118", -1, 1)
    assert first.lines + rest.lines == tuple(workbench.logs["j-118"])
    assert last.lines == rest.lines[-1:]
    assert last.next == rest.next


@pytest.mark.parametrize("text", ["plain words", "  indented_name = 3.5;", "naïve 漢字 👩‍🚀", ""])
def test_tokens_are_reversible(text: str) -> None:
    assert scripted_text.detokenize(scripted_text.tokenize(text)) == text
