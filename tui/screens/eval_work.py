"""Starting a run of a suite: which suite, which model, what limits; then a job. Also what a suite asks, to read."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lathe.engine.evals.results import SuiteInfo
from lathe.engine.jobs.values import Job
from lathe.engine.steps import EvalStep
from lathe.store.models import ModelEntry
from lathe.tui.screens.dialogs import Ask
from lathe.tui.screens.forms import Field, Form, number
from lathe.tui.screens.model_work import submit as submit_step
from lathe.tui.screens.reading import Choice, Choose, Reading
from lathe.tui.views.models import card_of

if TYPE_CHECKING:
    from lathe.tui.app import LatheApp

FILE = "/"
"""Stands for a suite that is given by its path; no suite has such a name."""


def runnable(models: Sequence[ModelEntry]) -> list[ModelEntry]:
    """Models that can be asked."""
    return [e for e in models if e.format in ("gguf", "onnx", "ggml", "remote") and e.card and not card_of(e).pooling]


def ask_run(app: LatheApp, suite: str = "", model: str = "") -> None:
    """Suite, then model, then the rest."""

    def choose(suites: list[SuiteInfo]) -> None:
        choices = [Choice(one.name, one.name, one.problem or one.description) for one in suites]
        choices.append(Choice(FILE, "a suite file...", "by its path"))
        app.push_screen(
            Choose("Run which suite?", choices, current=suite),
            lambda name: _suite_chosen(app, suites, name, model) if name else None,
        )

    app.do(lambda bench: bench.eval_suites(), choose, what="suites")


def _suite_chosen(app: LatheApp, suites: Sequence[SuiteInfo], name: str, model: str) -> None:
    if name == FILE:
        app.push_screen(
            Ask("Run a suite", "Suite file", check=_file_check, hint="YAML; `lathe eval schema` names its fields"),
            lambda path: _ask_model(app, str(Path(path).expanduser().absolute()), "", (), model) if path else None,
        )
        return
    info = next(one for one in suites if one.name == name)
    if info.problem:
        app.push_screen(Reading(f"Suite {name} cannot be run", info.problem, info.path))
        return
    _ask_model(app, name, info.description, info.needs, model)


def _file_check(path: str) -> str:
    return "" if Path(path).expanduser().is_file() else "there is no such file"


def _ask_model(app: LatheApp, suite: str, description: str, needs: Sequence[str], model: str) -> None:
    choices = [
        Choice(e.name, e.name, "in memory" if app.board.worker(e.id) else card_of(e).file_type or e.format)
        for e in runnable(app.board.models)
    ]
    app.push_screen(
        Choose(f"Run {_short(suite)} on which model?", choices, current=model, empty="No model. 2 goes to Models."),
        lambda name: _ask_limits(app, suite, description, needs, name) if name else None,
    )


def _ask_limits(app: LatheApp, suite: str, description: str, needs: Sequence[str], model: str) -> None:
    form = Form(
        f"Run {_short(suite)} on {model}",
        (
            *(
                Field(f"needs-{number}", name, "", hint="the suite needs it", check=_needed)
                for number, name in enumerate(needs)
            ),
            Field("limit", "cases per task", "", hint="empty: all", check=number(1, 1e7, whole=True, optional=True)),
            Field("seeds", "seeds", "", hint="empty: the suite's own; several, each makes a run", check=_seeds_check),
            Field("variables", "variables", "", hint="NAME=VALUE ..., in place of the suite's own",
                  check=_variables_check),
            Field("tags", "only tags", "", hint="separated by blanks; empty: all cases"),
            Field("bad", "unusable cases", "refuse the suite", ("refuse the suite", "leave out")),
            Field("cache", "known answers", "use", ("use", "ask again"), "answers to the same question are kept"),
            Field("name", "baseline name", "", hint="empty: none; later runs are compared with it"),
        ),
        yes="Run", intro=description,
    )  # fmt: skip

    def take(values: dict[str, str] | None) -> None:
        if values is None:
            return
        seeds: list[int | None] = [int(text) for text in values["seeds"].split()] or [None]
        wanted: dict[str, str | int | float | bool] = {
            name: values[f"needs-{number}"].strip() for number, name in enumerate(needs)
        }
        wanted.update(_pairs(values["variables"]))
        for seed in seeds:
            step = EvalStep(
                suite=suite, model=model, variables=wanted, seed=seed,
                limit=int(values["limit"]) if values["limit"].strip() else None, tags=tuple(values["tags"].split()),
                skip_bad=values["bad"] == "leave out", cache=values["cache"] == "use",
                baseline_name=values["name"].strip() or None if seed == seeds[0] else None,
            )  # fmt: skip
            submit(app, step)

    app.push_screen(form, take)


def submit(app: LatheApp, step: EvalStep) -> None:
    """Queue a run of a suite."""
    words = ["lathe", "eval", "run", step.suite, step.model]
    words += ["--limit", str(step.limit)] if step.limit else []
    words += ["--seed", str(step.seed)] if step.seed is not None else []
    words += [word for name, value in step.variables.items() for word in ("--var", f"{name}={value}")]
    words += [word for tag in step.tags for word in ("--tag", tag)]
    words += ["--skip-bad"] if step.skip_bad else []
    words += [] if step.cache else ["--no-cache"]
    words += ["--as", step.baseline_name] if step.baseline_name else []
    submit_step(app, step, shlex.join(words), lambda job: _show(app, job))


def _show(app: LatheApp, job: Job) -> None:
    place = app.current_place
    if place is not None and place.MODE == "evals":
        place.open_key(job.id)


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (word.partition("=") for word in shlex.split(text))]


def _needed(text: str) -> str:
    return "" if text.strip() else "the suite cannot run without it"


def _variables_check(text: str) -> str:
    try:
        bad = next((name for name, value in _pairs(text) if not name or not value), None)
    except ValueError as error:
        return str(error)
    return "" if bad is None else f"{bad or '='!r}: write NAME=VALUE"


def _seeds_check(text: str) -> str:
    seed = number(0, 2**32 - 1, whole=True)
    return next((problem for problem in map(seed, text.split()) if problem), "")


def _short(suite: str) -> str:
    return suite.rpartition("/")[2]


def show_suites(app: LatheApp) -> None:
    """What suites there are; one chosen is told in full."""

    def choose(suites: list[SuiteInfo]) -> None:
        choices = [
            Choice(one.name, f"{one.name} {one.version}", f"{'! ' if one.problem else ''}{one.origin}")
            for one in suites
        ]

        def tell(name: str | None) -> None:
            if name:
                app.push_screen(Reading(f"Suite {name}", *_told(next(one for one in suites if one.name == name))))

        app.push_screen(Choose("Suites: enter tells what one asks", choices), tell)

    app.do(lambda bench: bench.eval_suites(), choose, what="suites")


def _told(info: SuiteInfo) -> tuple[str, str]:
    if info.problem:
        return f"It cannot be run:\n\n{info.problem}", info.path
    parts = [info.description, "", "Tasks", *(f"  {task}" for task in info.tasks)]
    parts += ["", "Gates", *(f"  {gate}" for gate in info.gates)] if info.gates else []
    parts += ["", f"Tags  {' '.join(info.tags)}"] if info.tags else []
    return "\n".join(parts), info.path
