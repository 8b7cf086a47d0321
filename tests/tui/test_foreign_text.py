"""Hostile text in every field the engine can send: nothing raises, nothing is obeyed, nothing becomes a link."""

from __future__ import annotations

import itertools
import re
from functools import partial
from typing import Any

import msgspec
import pytest
from lathe.engine.errors import Failure
from lathe.engine.events import LogLine
from lathe.engine.jobs.values import Job, Progress
from lathe.engine.states import RequestRow
from lathe.engine.steps import QuantizeStep
from lathe.engine.workbench import ApiKey, Finding, SettingValue
from lathe.tui.chat import Options
from lathe.tui.places import PLACES
from lathe.tui.screens.dialogs import Ask, Confirm, Dialog, Write
from lathe.tui.screens.forms import Field, Form
from lathe.tui.screens.reading import Choice, Choose, Facts, Reading
from rich.cells import cell_len
from support import scripted_data as data
from support.foreign import CORPUS, HOSTILE
from support.screens import running, screen_lines, tick, type_text, until
from support.scripted_workbench import ScriptedWorkbench
from textual.events import Paste

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b-\u200f\ufeff\U000e0000-\U000e0fff]")
TEXTS = [*HOSTILE, *CORPUS]


def _safe(text: str) -> str:
    """As it would come through a file or a socket, where no lone surrogate survives."""
    return text.encode("utf-8", "replace").decode()


def _poisoned(offset: int) -> ScriptedWorkbench:
    """A workbench in which every string that may come from outside is one of the texts, each field another one."""
    source = itertools.islice(itertools.cycle(TEXTS), offset, None)
    bench = ScriptedWorkbench()
    replace = msgspec.structs.replace
    for index, (key, entry) in enumerate(list(bench.catalogue.items())):
        card = dict(entry.card)
        for name in ("name", "architecture", "licence", "chat_template", "file_type", "tokenizer"):
            if name in card:
                card[name] = _safe(next(source))
        card["warnings"] = (_safe(next(source)),)
        text = next(source)
        fields = {"name": f"{index}{text}", "path": next(source), "card": card, "recipe": {text: text}, "tags": (text,)}
        bench.catalogue[key] = replace(entry, **fields)
    for number, state in enumerate(("running", "failed", "queued", "done", "interrupted", "failed")):
        text = next(source)
        job = Job(
            id=f"j-{200 + number}", step=QuantizeStep(model=next(source), type=text), title=next(source), run=text,
            state=state, progress=Progress(label=next(source), done=1, total=3, unit=next(source), rate=1.0, eta_s=5.0),  # type: ignore[arg-type]
            started_at=data.T0 - 100, failure=Failure("E_X", next(source), next(source)) if state == "failed" else None,
        )  # fmt: skip
        bench.queue[job.id] = job
        bench.logs[job.id] = [_safe(next(source)), f"12:00:00 warn {_safe(next(source))}"]
    bench.requests = {
        f"r-{n}": RequestRow(id=f"r-{n}", model=next(source), stage=stage, client=next(source), finished=done)
        for n, (stage, done) in enumerate((("decode", False), ("prefill", False), (next(source), True)))
    }
    for key, worker in list(bench.workers.items()):
        failure = Failure("E_X", next(source), next(source))
        fields = {"name": next(source), "path": next(source), "failure": failure, "phase": "failed"}
        bench.workers[key] = replace(worker, **fields)
    record = {"v": 1, "ts": 1.0, "level": "error", "source": _safe(next(source)), "text": _safe(next(source))}
    bench.lines = [_safe(next(source)), msgspec.json.encode(record).decode()]
    bench.report = [
        Finding(area=next(source), name=str(n), value=next(source), level="fail", fix=next(source)) for n in range(4)
    ]
    bench.values = {
        f"a.b{n}": SettingValue(
            key=f"a.b{n}", value=next(source), default=next(source), source=next(source), doc=next(source), kind="str"
        )
        for n in range(4)
    }
    name = next(source)
    bench.tokens = {name: ApiKey(name=name, created_at=1.0, models=(next(source),))}
    return bench


PASTED = "pasted \x1b[31mred\x1b[0m \u202etext\x07"


@pytest.mark.parametrize("mode", ["chat", "models"])
async def test_what_is_pasted_is_cleaned(mode: str) -> None:
    async with running(mode=mode) as (app, pilot, _):
        await pilot.pause()
        if mode == "models":
            await pilot.press("slash")
            await pilot.pause()
        app.post_message(Paste(PASTED))
        await until(pilot, lambda: any("pasted red text" in line for line in screen_lines(app)))
        assert not any(CONTROL.search(line) for line in screen_lines(app))


@pytest.mark.parametrize("offset", range(0, len(TEXTS), 9))
async def test_every_place_survives(offset: int) -> None:
    fired: list[str] = []
    async with running(_poisoned(offset), size=(120, 40)) as (app, pilot, bench):
        app.action_how_to_quit = lambda: fired.append("how_to_quit")  # type: ignore[method-assign]
        for place in PLACES:
            await app.action_go(place.mode)
            await pilot.pause()
            bench.emit(LogLine(1.0, "info", TEXTS[offset], TEXTS[offset]))
            for key in ("j", "j", "j"):
                await pilot.press(key)
            await tick(app, pilot, bench)
            lines = screen_lines(app)
            assert not any(CONTROL.search(line) for line in lines)
            assert all(cell_len(line) <= 120 for line in lines)
        assert not fired
        assert app.is_running


async def test_a_click_on_markup_does_nothing() -> None:
    """Textual's own widgets turn `[@click=...]` into a link that runs an action of the app."""
    bench = ScriptedWorkbench()
    text = "[@click=app.how_to_quit]XX[/]"
    bench.catalogue = {
        key: msgspec.structs.replace(entry, name=f"{n}{text}") for n, (key, entry) in enumerate(bench.catalogue.items())
    }
    fired: list[str] = []
    async with running(bench, size=(200, 40), mode="models") as (app, pilot, _):
        app.action_how_to_quit = lambda: fired.append("how_to_quit")  # type: ignore[method-assign]
        app.notify(text)
        await pilot.pause()
        spots = [(line.index("XX"), y) for y, line in enumerate(screen_lines(app)) if "XX" in line]
        assert len(spots) > 10
        for spot in spots[:4] + spots[-2:]:
            await pilot.click(offset=spot)
        assert not fired


def _dialogs(text: str) -> list[Dialog[Any]]:
    return [
        Confirm(text, [text, text], "Do it", phrase=text.strip()[:20]),
        Ask(text, text, text, check=lambda _: text, hint=text),
        Write(text, text, text),
        Choose(text, [Choice(text, text, text)], current=text, empty=text),
        Facts(text, [(text[:100], text), (text[:100], text)]),
        Reading(text, text, text),
        Form(text, [Field("a", text[:100], text, hint=text[:100])], intro=text, watch=lambda _: text),
    ]


@pytest.mark.parametrize("offset", range(0, len(TEXTS), 9))
async def test_every_dialog_and_toast_survives(offset: int) -> None:
    async with running(size=(100, 30)) as (app, pilot, _):
        for text in TEXTS[offset : offset + 9]:
            for dialog in _dialogs(text):
                app.push_screen(dialog)
                await pilot.pause()
                assert not any(CONTROL.search(line) for line in screen_lines(app)), (type(dialog), text[:80])
                app.pop_screen()
            app.report(Failure("E_X", text, text), what=text)
            await pilot.pause()
            assert not any(CONTROL.search(line) for line in screen_lines(app)), text[:80]
            app.clear_notifications()


def _ended(pane: Any, turns: int) -> bool:
    return len(pane.conversation.turns) == turns and not pane.streaming


@pytest.mark.parametrize("rich", [True, False], ids=["markdown", "plain"])
async def test_answers_survive_and_are_kept_as_they_came(rich: bool) -> None:
    answers = iter([_safe(text) or "-" for text in TEXTS])
    bench = ScriptedWorkbench(answer=lambda _: next(answers))
    async with running(bench, mode="chat", size=(100, 30)) as (app, pilot, _):
        place: Any = app.screen
        place.rich, place.options = rich, Options(max_tokens=None)
        pane = place.panes[0]
        for number, text in enumerate(TEXTS, 1):
            place.send("go")
            await until(pilot, partial(_ended, pane, 2 * number))
            await pilot.pause()
            assert pane.conversation.last_answer == (_safe(text) or "-")
            lines = screen_lines(app)
            assert not any(CONTROL.search(line) for line in lines)
            assert all(cell_len(line) <= 100 for line in lines)
        assert len(pane.transcript.turns) == 2 * len(TEXTS)


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
            for word in ("click me", "example"):
                if word in line:
                    await pilot.click(offset=(line.index(word) + 2, y))
        assert not opened
