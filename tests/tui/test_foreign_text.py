"""Hostile text in every field the engine can send: nothing raises, nothing is obeyed, nothing becomes a link."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from lathe.engine.errors import Failure
from lathe.engine.events import LogLine
from lathe.engine.jobs.values import Job, Progress
from lathe.engine.states import RequestRow
from lathe.engine.steps import QuantizeStep
from lathe.engine.workbench import ApiKey, Finding, SettingValue
from lathe.tui.places import PLACES
from lathe.tui.screens.dialogs import Ask, Confirm, Write
from lathe.tui.screens.forms import Field, Form
from lathe.tui.screens.reading import Choice, Choose, Facts, Reading
from rich.cells import cell_len
from support import scripted_data as data
from support.foreign import CORPUS, HOSTILE
from support.screens import running, screen_lines, tick, type_text, until
from support.scripted_workbench import ScriptedWorkbench

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b-\u200f\ufeff\U000e0000-\U000e0fff]")
TEXTS = [*HOSTILE, *CORPUS]


def _poisoned(text: str) -> ScriptedWorkbench:
    """A workbench in which every string that may come from outside is `text`."""
    bench = ScriptedWorkbench(answer=text or "-", living=True)
    replace = msgspec.structs.replace
    safe = text.encode("utf-8", "replace").decode()
    for index, (key, entry) in enumerate(list(bench.catalogue.items())):
        card = dict(entry.card)
        for name in ("name", "architecture", "licence", "chat_template", "file_type", "tokenizer"):
            if name in card:
                card[name] = safe
        card["warnings"] = (safe,)
        bench.catalogue[key] = replace(
            entry, name=f"{index}{text}", path=text, card=card, recipe={text: text}, tags=(text,)
        )
    failure = Failure("E_X", text, text, 70)
    step = QuantizeStep(model=text, type=text)
    progress = Progress(label=text, done=1, total=3, unit=text, rate=1.0, eta_s=5.0)
    for number, state in enumerate(("running", "failed", "queued", "done")):
        job = Job(id=f"j-{200 + number}", step=step, title=text, state=state, progress=progress,  # type: ignore[arg-type]
                  started_at=data.T0 - 100, failure=failure if state == "failed" else None, run=text)  # fmt: skip
        bench.queue[job.id] = job
        bench.logs[job.id] = [text, f"12:00:00 warn {text}"]
    bench.requests = {
        f"r-{n}": RequestRow(id=f"r-{n}", model=text, stage=stage, client=text, finished=done)
        for n, (stage, done) in enumerate((("decode", False), (text, True)))
    }
    for key, worker in list(bench.workers.items()):
        bench.workers[key] = replace(worker, name=text, path=text, failure=failure, phase="failed")
    bench.lines = [
        text,
        msgspec.json.encode({"v": 1, "ts": 1.0, "level": "error", "source": safe, "text": safe}).decode(),
    ]
    bench.report = [Finding(area=text, name=text, value=text, level="fail", fix=text)]
    bench.values = {"a.b": SettingValue(key="a.b", value=text, default=text, source=text, doc=text, kind="str")}
    bench.tokens = {text: ApiKey(name=text, created_at=1.0, models=(text,))}
    return bench


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
async def test_every_place_survives(text: str) -> None:
    fired: list[str] = []
    async with running(_poisoned(text), size=(120, 40)) as (app, pilot, bench):
        app.action_how_to_quit = lambda: fired.append("how_to_quit")  # type: ignore[method-assign]
        for place in PLACES:
            await app.action_go(place.mode)
            await tick(app, pilot, bench)
            bench.emit(LogLine(1.0, "info", text, text))
            await pilot.pause(0.02)
            lines = screen_lines(app)
            assert not any(CONTROL.search(line) for line in lines)
            assert all(cell_len(line) <= 120 for line in lines)
            # A click on every other cell of a few rows must fire no action hidden in a text.
            for y in range(4, 36, 8):
                for x in range(2, 118, 29):
                    await pilot.click(offset=(x, y))
            while len(app.screen_stack) > 1:
                app.pop_screen()
                await pilot.pause()
        assert not fired
        assert app.is_running


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
async def test_every_dialog_and_toast_survives(text: str) -> None:
    async with running(size=(100, 30)) as (app, pilot, _):
        made: list[Any] = [
            Confirm(text, [text, text], "Do it", phrase=text.strip()[:20]),
            Ask(text, text, text.replace("\n", " ")[:50], check=lambda _: text, hint=text),
            Write(text, text, text),
            Choose(text, [Choice(text, text, text)], current=text, empty=text),
            Facts(text, [(text[:100], text), (text[:100], text)]),
            Reading(text, text, text),
            Form(
                text,
                (Field("a", text[:100], text.replace("\n", " "), hint=text[:100]),),
                intro=text,
                watch=lambda _: text,
            ),
        ]
        for dialog in made:
            app.push_screen(dialog)
            await pilot.pause()
            await pilot.press("enter")
            await pilot.pause()
            assert not any(CONTROL.search(line) for line in screen_lines(app))
            if app.screen is dialog:
                app.pop_screen()
        app.notify(text, title=text, severity="error")
        app.report(Failure("E_X", text, text), what=text)
        await pilot.pause()
        assert not any(CONTROL.search(line) for line in screen_lines(app))


@pytest.mark.parametrize("rich", [True, False], ids=["markdown", "plain"])
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
async def test_answers_survive_and_are_kept_as_they_came(text: str, rich: bool) -> None:
    bench = ScriptedWorkbench(answer=text or "-")
    async with running(bench, mode="chat", size=(100, 30)) as (app, pilot, _):
        place: Any = app.screen
        place.rich = rich
        await pilot.pause()
        await type_text(pilot, "go")
        await pilot.press("enter")
        pane = place.panes[0]
        await until(pilot, lambda: pane.conversation.turns and not pane.streaming and len(pane.conversation.turns) == 2)
        await pilot.pause()
        assert pane.conversation.last_answer == (text or "-")
        lines = screen_lines(app)
        assert not any(CONTROL.search(line) for line in lines)
        assert all(cell_len(line) <= 100 for line in lines)


async def test_a_link_in_an_answer_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    bench = ScriptedWorkbench(
        answer="[click me](https://example.invalid) <https://example.invalid> [x](javascript:alert)"
    )
    async with running(bench, mode="chat") as (app, pilot, _):
        monkeypatch.setattr(app, "open_url", lambda url, **_: opened.append(url))
        await pilot.pause()
        await type_text(pilot, "go")
        await pilot.press("enter")
        await until(pilot, lambda: any("click me" in line for line in screen_lines(app)))
        for y, line in enumerate(screen_lines(app)):
            for x in range(0, len(line), 3):
                if "click me" in line or "example" in line:
                    await pilot.click(offset=(x, y))
        assert not opened
