"""Everything that can be done, as a list: the palette's content, made of the bindings of every place.

A binding is a key, a footer hint, a line of the help and a command here, from one declaration. Besides, there are
commands with arguments (`load MODEL context=8192`). Invariant: no action of the app is missing from `commands`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

import msgspec
from lathe.engine.errors import UsageError
from lathe.engine.steps import QuantizeStep, ScanStep, VerifyStep
from lathe.engine.worker.messages import LoadOptions
from lathe.tui.keys import flat, hint
from lathe.tui.places import PLACES, Place
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.screens.model_work import install_toolchain
from lathe.tui.views.rows import kind_of
from textual.binding import Binding
from textual.widget import Widget

if TYPE_CHECKING:
    from lathe.tui.app import LatheApp

Run = Callable[["LatheApp"], None]


class Command(msgspec.Struct, frozen=True):
    """One line of the palette."""

    title: str
    run: Run
    key: str = ""
    note: str = ""
    id: str = ""
    here: bool = False
    """An action of the place that is open: listed first."""


def commands(app: LatheApp) -> list[Command]:
    """Every command, those of the open place first."""
    current = app.current_mode
    found: list[Command] = []
    for place in sorted(PLACES, key=lambda place: place.mode != current):
        found += _of_place(place, here=place.mode == current)
    found += [_go(place) for place in PLACES]
    found += _of_app(type(app).BINDINGS)
    found += _themes(app)
    found += _things(app)
    return found


def _of_place(place: Place, *, here: bool) -> Iterable[Command]:
    kind = place.kind()
    seen: set[str] = set()
    sources: tuple[type[Widget], ...] = (*kind.widgets_with_bindings(), kind, PlaceScreen)
    for source in sources:
        for binding in flat(source.__dict__.get("BINDINGS", ())):
            action = binding.action
            # What every list can do (sort, copy, zoom) is listed for the open place only.
            if action in seen or (source is PlaceScreen and not here) or binding.id in _MOVES:
                continue
            seen.add(action)
            title = f"{place.title}: {binding.tooltip or binding.description}"
            yield Command(title, _act(place, source, action), hint(binding).key, "", binding.id or "", here)


_MOVES = frozenset(
    f"{kind}.{name}"
    for kind in ("grid", "log", "sheet")
    for name in ("down", "up", "first", "last", "page_down", "page_up")
) | {"grid.open"}
"""Moving a cursor is no command."""


def _act(place: Place, source: type[Widget], action: str) -> Run:
    def run(app: LatheApp) -> None:
        async def there() -> None:
            await app.action_go(place.mode)
            screen = app.screen
            target = screen if isinstance(screen, source) else next(iter(screen.query(source)), screen)
            await app.run_action(action, target)

        app.run_worker(there(), exit_on_error=False)

    return run


def _go(place: Place) -> Command:
    def run(app: LatheApp) -> None:
        app.run_worker(app.action_go(place.mode), exit_on_error=False)

    return Command(f"Go to {place.title}", run, place.key, place.about, f"go.{place.mode}")


def _of_app(bindings: Iterable[object]) -> Iterable[Command]:
    for binding in flat(binding for binding in bindings if isinstance(binding, Binding)):
        if binding.action.startswith("go(") or binding.id == "app.commands":
            continue
        action = binding.action

        def run(app: LatheApp, action: str = action) -> None:
            app.call_later(app.run_action, action)

        yield Command(f"Lathe: {binding.tooltip}", run, hint(binding).key, "", binding.id or "")


def _themes(app: LatheApp) -> Iterable[Command]:
    for name in sorted(app.available_themes, key=lambda name: (not name.startswith("lathe"), name)):

        def run(app: LatheApp, name: str = name) -> None:
            app.set_theme(name)

        yield Command(f"Theme: {name}", run, note="current" if name == app.theme else "")


def _things(app: LatheApp) -> Iterable[Command]:
    """Models and jobs by name."""
    for entry in app.board.models:
        loaded = app.board.worker(entry.id) is not None
        verb = "unload" if loaded else "load"
        for word in (*((verb, "chat") if entry.format != "safetensors" else ()), "model"):
            title = {"load": "Load", "unload": "Unload", "chat": "Chat with", "model": "Show"}[word]
            yield Command(f"{title} {entry.name}", _verb(f"{word} {shlex.quote(entry.name)}"))
    for job in app.board.jobs[:20]:
        yield Command(f"Show job {job.id}: {job.title}", _verb(f"job {job.id}"))


def _verb(text: str) -> Run:
    def run(app: LatheApp) -> None:
        try:
            execute(app, text)
        except UsageError as error:
            app.notify(error.message, severity="warning")

    return run


# -- commands with arguments ----------------------------------------------------------------------------------------

VERBS = {
    "load": "load MODEL [context=N gpu_layers=N slots=N kv_type=TYPE]",
    "unload": "unload MODEL",
    "chat": "chat MODEL",
    "model": "model MODEL",
    "quantize": "quantize MODEL TYPE",
    "verify": "verify MODEL",
    "scan": "scan [FOLDER...]",
    "toolchain": "toolchain [FILE]",
    "job": "job ID",
    "cancel": "cancel ID",
    "go": "go PLACE",
    "theme": "theme NAME",
    "set": "set KEY VALUE",
    "filter": "filter WORDS",
}


NEED_NOTHING = ("scan", "toolchain", "filter")
"""Verbs that mean something without arguments."""


def parse(text: str) -> tuple[str, list[str], dict[str, str]] | None:
    """Split a typed command into verb, arguments and options; None where it is no command."""
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    if not words or words[0] not in VERBS:
        return None
    options = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    return words[0], [word for word in words[1:] if "=" not in word], options


def execute(app: LatheApp, text: str) -> None:
    """Run a typed command.

    Raises:
        UsageError: the verb, an argument or an option is wrong; the message says how it is meant.
    """
    parsed = parse(text)
    if parsed is None:
        near = get_close_matches(text.split(" ")[0], VERBS, 1)
        raise UsageError(f"no command {text.split(' ')[0]!r}" + (f"; did you mean {near[0]}?" if near else ""))
    verb, arguments, options = parsed
    if app.read_only and verb not in ("chat", "model", "job", "go", "theme", "filter"):
        raise UsageError("this session is read-only")
    if (not arguments and verb not in NEED_NOTHING) or (options and verb not in ("load", "filter")):
        raise UsageError(f"how it is meant: {VERBS[verb]}")
    first = arguments[0] if arguments else ""
    match verb:
        case "load":
            wanted = _load_options(options)
            app.do(
                lambda bench: bench.load(first, wanted),
                lambda worker: app.tell(f"{worker.name} is ready"),
                what=first,
            )
        case "unload":
            app.do(
                lambda bench: bench.unload(first),
                lambda _: app.tell(f"{first} left memory"),
                what=first,
            )
        case "chat" | "model" | "job":
            _visit(app, {"chat": "chat", "model": "models", "job": "jobs"}[verb], first)
        case "quantize":
            step = QuantizeStep(model=first, type=(arguments[1] if len(arguments) > 1 else "Q4_K_M").upper())
            app.do(
                lambda bench: bench.submit(step),
                lambda job: app.tell(f"{job.id} queued: {kind_of(job)} {job.title}"),
                what=first,
                command=f"lathe quantize {shlex.quote(first)} --type {step.type}",
            )
        case "verify":
            app.do(
                lambda bench: bench.submit(VerifyStep(model=first)),
                lambda job: app.tell(f"{job.id} queued: {kind_of(job)} {job.title}"),
                command=f"lathe models verify {shlex.quote(first)}",
            )
        case "scan":
            app.do(
                lambda bench: bench.submit(ScanStep(roots=tuple(arguments))),
                lambda job: app.tell(f"{job.id} queued: {kind_of(job)} {job.title}"),
                command=shlex.join(["lathe", "models", "scan", *arguments]),
            )
        case "toolchain":
            install_toolchain(app, first or None)
        case "cancel":
            app.do(
                lambda bench: bench.cancel(first),
                lambda job: app.tell(f"{job.id}: {job.state}"),
                what=first,
                command=f"lathe jobs cancel {shlex.quote(first)}",
            )
        case "go":
            place = next((p for p in PLACES if first.lower() in (p.mode, p.title.lower(), p.key)), None)
            if place is None:
                raise UsageError(f"no place {first!r}: {', '.join(p.mode for p in PLACES)}")
            app.run_worker(app.action_go(place.mode), exit_on_error=False)
        case "theme":
            if first not in app.available_themes:
                raise UsageError(f"no theme {first!r}")
            app.set_theme(first)
        case "set":
            value = " ".join(arguments[1:]) or None
            app.do(
                lambda bench: bench.set_setting(first, value),
                lambda s: app.tell(f"{s.key} = {s.value}"),
                what=first,
                command=shlex.join(["lathe", "config", "set", first, value or ""]),
            )
        case _:
            place_screen = app.current_place
            target = place_screen.target_list() if place_screen is not None else None
            if target is not None and place_screen is not None:
                target.filter(text.partition(" ")[2])
                place_screen.after_filter()


def _visit(app: LatheApp, mode: str, key: str) -> None:
    async def there() -> None:
        await app.action_go(mode)
        place = app.current_place
        if place is not None:
            place.open_key(key)

    app.run_worker(there(), exit_on_error=False)


def _load_options(options: dict[str, str]) -> LoadOptions:
    known = LoadOptions.__struct_fields__
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise UsageError(f"load: no option {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        return msgspec.convert(options, LoadOptions, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"load: {error}") from None
