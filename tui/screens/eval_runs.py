"""What can be done with a run: name it, compare it, hold it against gates, write its report, play a case, forget it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lathe.engine.errors import ConfigError
from lathe.engine.evals.results import Comparison, EvalRun, ReportStyle, Verdict
from lathe.engine.evals.verdict import decide
from lathe.engine.steps import EvalStep
from lathe.tui import formats
from lathe.tui.screens.dialogs import Ask, Confirm, Write
from lathe.tui.screens.reading import Choice, Choose
from lathe.tui.views.case import CaseSeen

if TYPE_CHECKING:
    from lathe.tui.app import LatheApp

STYLES: dict[str, ReportStyle] = {
    ".md": "markdown", ".html": "html", ".xml": "junit", ".json": "json", ".jsonl": "jsonl"
}  # fmt: skip


def ask_baseline(app: LatheApp, run: EvalRun, runs: Sequence[EvalRun], then: Callable[[], None]) -> None:
    """Let a name stand for the run, or forget the name it has."""

    def put(name: str, reference: str | None) -> None:
        def done(found: EvalRun | None) -> None:
            app.tell(f"{name} is {found.id}" if found else f"{name} is forgotten")
            then()

        words = ["lathe", "eval", "baseline", name, *([reference] if reference else ["--forget"])]
        app.do(lambda bench: bench.set_baseline(name, reference), done, command=shlex.join(words), what=name)

    if run.state != "done":
        app.notify(f"{run.id} is {run.state}: only a finished run can be a baseline.", severity="warning")
        return
    if run.aliases:
        named = run.aliases[0]
        lines = [f"{named} stands for {run.id} now.", "The run stays; later runs are compared with nothing."]
        app.push_screen(
            Confirm(f"Forget the baseline {named}?", lines, "Forget"), lambda yes: put(named, None) if yes else None
        )
        return
    old = next((other.aliases[0] for other in runs if other.aliases and other.suite == run.suite), run.suite)
    hint = "Runs of this suite are compared with it from now on."
    app.push_screen(
        Ask(f"Baseline {run.id}", "Name", old, hint=hint),
        lambda name: put(name.strip(), run.id) if name and name.strip() else None,
    )


def ask_base(
    app: LatheApp, run: EvalRun, runs: Sequence[EvalRun], current: str, take: Callable[[str], None]
) -> None:  # fmt: skip
    """Which run to compare with; empty: the suite's baseline."""
    others = [other for other in runs if other.suite == run.suite and other.id != run.id and other.state == "done"]
    choices = [Choice("", "the suite's baseline", "by itself")]
    choices += [Choice(other.id, f"{other.id}  {other.model}", " ".join(other.aliases)) for other in others]
    app.push_screen(
        Choose(f"Compare {run.id} with", choices, current=current), lambda key: take(key) if key is not None else None
    )


def ask_gates(
    app: LatheApp, run: EvalRun, comparison: Comparison | None, verdict: Verdict,
    take: Callable[[tuple[str, ...]], None],
) -> None:  # fmt: skip
    """Read and edit the gates of a run, for this session."""
    shown = "\n".join(gate.gate for gate in verdict.gates)
    hint = "One condition per line, as `acc lower bound > 0.6`. Empty: the suite's own. For this session."

    def check(text: str | None) -> None:
        if text is None:
            return
        gates = tuple(line.strip() for line in text.splitlines() if line.strip())
        try:
            decide(run, comparison, gates)
        except ConfigError as error:
            app.notify(f"{error.message}\n{error.hint}", severity="warning")
            return
        words = ["lathe", "eval", "gate", run.id, *(word for gate in gates for word in ("--gate", gate))]
        app.did = shlex.join([*words, *(["--baseline", comparison.base.id] if comparison else [])])
        take(gates)

    app.push_screen(Write(f"Gates of {run.id}", shown, hint), check)


def ask_export(app: LatheApp, run: EvalRun, baseline: str | None) -> None:
    """A report of a run, in the format of the file's suffix."""
    folder = app.state_dir
    name = f"{run.suite}-{run.id}.html"

    def check(path: str) -> str:
        return "" if Path(path).suffix in STYLES else f"the suffix chooses the format: {' '.join(STYLES)}"

    def take(path: str | None) -> None:
        if path:
            style = STYLES[Path(path).suffix]
            words = ["lathe", "eval", "export", run.id, "--to", style, "-o", path]
            words += ["--baseline", baseline] if baseline else []
            app.do(
                lambda bench: bench.eval_report(run.id, style, baseline), lambda text: app.write(path, text),
                command=shlex.join(words), what=run.id,
            )  # fmt: skip

    app.push_screen(
        Ask(
            f"Report of {run.id}", "File (.html, .md, .xml, .json, .jsonl)", str(folder / name) if folder else name,
            check=check, hint=f"compared with {baseline}" if baseline else "",
        ),
        take,
    )  # fmt: skip


def same_again(run: EvalRun) -> EvalStep:
    """The step that asks what a stopped run had not asked yet."""
    chosen = run.settings
    return EvalStep(
        suite=run.path or run.suite, model=run.model, variables=chosen.variables, limit=chosen.limit, seed=chosen.seed,
        tags=chosen.tags, skip_bad=chosen.skip_bad,
    )  # fmt: skip


async def play(app: LatheApp, seen: CaseSeen) -> None:
    """A case's question in the Playground, for the run's model and beside it the baseline's."""
    from lathe.tui.screens.playground import Playground

    names = [run.model for run in (seen.run, seen.base) if run is not None]
    known = [name for name in dict.fromkeys(names) if app.board.model(name) is not None]
    if not known:
        app.notify(f"{names[0]} is no longer in the catalogue.", severity="warning")
        return
    # A conversation is kept as `[role] text`; what was asked is its last turn.
    question = seen.after.prompt.rpartition("[user] ")[2]
    await app.action_go("chat")
    if isinstance(app.current_place, Playground):
        app.current_place.pose(question, known)


def ask_forget(app: LatheApp, run: EvalRun, then: Callable[[EvalRun], None]) -> None:
    """Forget a run with its cases; a baseline needs a typed word."""
    lines = [
        f"{run.suite} on {run.model}, {formats.many(run.done, 'answer')} with their judgements.",
        "Reviews of its answers and the model stay.",
        *([f"It is the baseline {run.aliases[0]}."] if run.aliases else []),
    ]

    def take(yes: bool | None) -> None:
        if yes:
            app.do(
                lambda bench: bench.remove_eval_run(run.id), then, command=f"lathe eval rm {run.id} --yes", what=run.id
            )

    phrase = "forget" if run.aliases else ""
    app.push_screen(Confirm(f"Forget {run.id}?", lines, "Forget", phrase=phrase), take)
