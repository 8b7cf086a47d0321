"""Evals from the shell: run a suite, list, show, compare, gate, export; exit 1 where a gate is missed.

Each verb submits the step that screens submit, or asks the workbench. Invariant: data goes to stdout, and a figure is
never shown without its interval.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from lathe.engine.errors import MissingError
from lathe.engine.evals.results import Comparison, EvalRun
from lathe.engine.jobs.values import Job
from lathe.engine.steps import EvalStep, GateStep, HarnessStep, JudgeStep
from lathe.engine.workbench import Workbench
from lathe.engine.worker.messages import LoadOptions
from lathe.tui.cli.follow import run_step
from lathe.tui.cli.numbers import GPU_LAYERS, SOME_THREADS, Finite
from lathe.tui.cli.shell import Shell, anchored, need_yes, put, put_json, put_table, say
from lathe.tui.cli.work import absolute, reference
from lathe.tui.formats import clock

_STYLES = click.Choice(["markdown", "html", "json", "junit", "jsonl"])


@click.group("eval")
def evaluate() -> None:
    """Suites, runs, comparisons and gates."""


def _variables(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE")
        found[name] = text
    return found


def _gate_options(command: Any) -> Any:
    command = click.option("--waivers", type=click.Path(path_type=Path), help="YAML list of waivers.")(command)
    command = click.option("--gate", "gates", multiple=True, metavar="GATE", help="'acc lower bound > 0.6', ...")(
        command
    )
    return click.option("--baseline", metavar="RUN", help="Run or baseline's name to compare with.")(command)


@evaluate.command("run")
@click.argument("suite")
@click.argument("model")
@click.option("--var", "variables", multiple=True, callback=_variables, metavar="NAME=VALUE", help="Suite variable.")
@click.option("--limit", type=click.IntRange(min=1), help="Cases per task.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1))
@click.option("--tag", "tags", multiple=True, help="Only cases with one of these tags.")
@click.option("--skip-bad", is_flag=True, help="Leave unusable cases out.")
@click.option("--concurrency", type=click.IntRange(1, 256), default=8, show_default=True)
@click.option("--ctx", "context", type=click.IntRange(min=8), help="Context to load the model with.")
@click.option("--threads", type=SOME_THREADS, help="Threads of the model.")
@click.option("--gpu-layers", type=GPU_LAYERS)
@click.option("--no-cache", is_flag=True, help="Ask every question again.")
@click.option("--fresh", is_flag=True, help="Begin anew instead of going on with an unfinished run.")
@click.option("--as", "baseline_name", metavar="NAME", help="Name the run as a baseline.")
@_gate_options
@click.option("--report", "reports", multiple=True, type=click.Path(path_type=Path), help=".html .md .json .jsonl .xml")
@click.option("--detach", is_flag=True, help="Leave the job to the engine; print its id.")
@click.option("--json", "as_json", is_flag=True, help="The outcome as JSON.")
@click.pass_obj
def run_(
    shell: Shell, suite: str, model: str, variables: dict[str, Any], limit: int | None, seed: int | None,
    tags: tuple[str, ...], skip_bad: bool, concurrency: int, context: int | None, threads: int | None,
    gpu_layers: int | None, no_cache: bool, fresh: bool, baseline_name: str | None, baseline: str | None,
    gates: tuple[str, ...], waivers: Path | None, reports: tuple[Path, ...], detach: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run SUITE on MODEL; with gates or a baseline, decide, too."""
    gated = bool(gates or baseline or waivers)
    if gated and detach:
        raise click.UsageError("--detach cannot wait for gates; run `lathe eval gate` afterwards")
    chosen = _options(context, threads, gpu_layers)
    files = tuple(anchored(path) for path in reports)
    step = EvalStep(
        suite=_suite(suite), model=reference(model), variables=variables, limit=limit, seed=seed, tags=tags,
        skip_bad=skip_bad, concurrency=concurrency, cache=not no_cache, fresh=fresh, options=chosen,
        baseline_name=baseline_name, reports=() if gated else files,
    )  # fmt: skip
    ran: list[str] = []

    def show(job: Job) -> None:
        assert job.outcome is not None
        ran.append(str(job.outcome.figures["run"]))
        if not as_json or not gated:
            _show_rows(job)

    code = run_step(shell, step, show, detach=detach, as_json=as_json and not gated)
    if gated and ran:
        code = max(code, _gate(shell, ran[0], baseline, gates, waivers, files, as_json))
    raise SystemExit(code)


@evaluate.command("gate")
@click.argument("run")
@_gate_options
@click.option("--tolerance", type=Finite(0, 1), default=0.01, show_default=True, help="Loss that may be.")
@click.option("--report", "reports", multiple=True, type=click.Path(path_type=Path), help=".html .md .json .jsonl .xml")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def gate_(
    shell: Shell, run: str, baseline: str | None, gates: tuple[str, ...], waivers: Path | None, tolerance: float,
    reports: tuple[Path, ...], as_json: bool,
) -> None:  # fmt: skip
    """Hold RUN against gates; exit 1 where one is missed."""
    files = tuple(anchored(path) for path in reports)
    raise SystemExit(_gate(shell, run, baseline, gates, waivers, files, as_json, tolerance))


def _gate(
    shell: Shell, run: str, baseline: str | None, gates: tuple[str, ...], waivers: Path | None,
    reports: tuple[str, ...], as_json: bool, tolerance: float = 0.01,
) -> int:  # fmt: skip
    step = GateStep(
        of=run, baseline=baseline, gates=gates, waivers=absolute(waivers),
        tolerance=tolerance, reports=reports,
    )  # fmt: skip
    return run_step(shell, step, _show_gates, as_json=as_json)


@evaluate.command("list")
@click.option("--runs", is_flag=True, help="Runs instead of suites.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def list_(shell: Shell, runs: bool, as_json: bool) -> None:
    """Suites that have a name, or runs."""

    async def work(workbench: Workbench) -> None:
        if runs:
            listed = await workbench.eval_runs()
            put_json(listed) if as_json else _show_runs(listed)
            return
        suites = await workbench.eval_suites()
        if as_json:
            put_json(suites)
            return
        rows = [
            (one.name, one.version, one.origin, ", ".join(one.tasks), one.problem or one.description) for one in suites
        ]
        put_table(("suite", "version", "from", "tasks", ""), rows)

    shell.run(work, as_json=as_json)


@evaluate.command("check")
@click.argument("suite")
@click.option("--var", "variables", multiple=True, callback=_variables, metavar="NAME=VALUE", help="Suite variable.")
@click.option("--skip-bad", is_flag=True, help="Leave unusable cases out.")
@click.pass_obj
def check_(shell: Shell, suite: str, variables: dict[str, Any], skip_bad: bool) -> None:
    """Read SUITE with every case and ask nothing: each mistake by file and line."""
    from lathe.engine.evals import shipped
    from lathe.engine.evals.suite import load

    async def work(_: Workbench) -> None:
        loaded = load(shipped.find(suite, shell.home.suites), variables=variables, skip_bad=skip_bad)
        put_table(("task", "kind", "questions", "metrics"),
                  [(one.task.id, one.task.kind, len(one.items), ", ".join(metric.name for metric in one.metrics))
                   for one in loaded.tasks], right=(2,))  # fmt: skip
        for bad in loaded.bad:
            say(f"left out: {bad}")

    shell.run(work)


@evaluate.command("schema")
def schema_() -> None:
    """The JSON Schema of suites, for editors."""
    import msgspec
    from lathe.engine.evals.values import Suite

    put(msgspec.json.format(msgspec.json.encode(msgspec.json.schema(Suite))).decode())


@evaluate.command("show")
@click.argument("run")
@click.option("--cases", is_flag=True, help="Every case with its answer.")
@click.option("--failed", is_flag=True, help="Only cases whose answer did not come.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def show_(shell: Shell, run: str, cases: bool, failed: bool, as_json: bool) -> None:
    """Figures of RUN, or its cases."""

    async def work(workbench: Workbench) -> None:
        found = await workbench.eval_run(run)
        if not (cases or failed):
            put_json(found) if as_json else _show_run(found)
            return
        after = 0
        while page := await workbench.eval_records(found.id, after):
            after += len(page)
            for record in page:
                if failed and record.failure is None:
                    continue
                if as_json:
                    put_json(record)
                else:
                    values = "  ".join(f"{name} {value:.4g}" for name, value in record.values.items())
                    put(f"{record.label}  {values}  {' '.join(record.answer().split())[:100]}")

    shell.run(work, as_json=as_json)


@evaluate.command("compare")
@click.argument("baseline")
@click.argument("run")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def compare_(shell: Shell, baseline: str, run: str, as_json: bool) -> None:
    """RUN against BASELINE: cases fixed and broken, and what is more than noise."""

    async def work(workbench: Workbench) -> None:
        comparison = await workbench.eval_compare(baseline, run)
        put_json(comparison) if as_json else _show_comparison(comparison)

    shell.run(work, as_json=as_json)


@evaluate.command("export")
@click.argument("run")
@click.option("--to", "style", type=_STYLES, default="markdown", show_default=True)
@click.option("--baseline", metavar="RUN")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write (default: stdout).")
@click.pass_obj
def export(shell: Shell, run: str, style: Any, baseline: str | None, output: Path | None) -> None:
    """RUN as a document."""

    async def work(workbench: Workbench) -> None:
        text = await workbench.eval_report(run, style, baseline)
        if output is None:
            put(text.rstrip("\n"))
            return
        from lathe.engine.evals.reports.files import write

        write(output, text)

    shell.run(work)


@evaluate.command("review")
@click.argument("run")
@click.argument("case")
@click.argument("label", type=click.Choice(["accept", "reject", "edit"]))
@click.option("--edited", help="The answer as it should have been; with the label edit.")
@click.option("--explain", default="", help="Why.")
@click.option("--by", default="me", show_default=True, help="Whose judgement it is.")
@click.pass_obj
def review_(shell: Shell, run: str, case: str, label: str, edited: str | None, explain: str, by: str) -> None:
    """Judge the answer of CASE (as `task/case`) in RUN."""
    from lathe.engine.evals.reviews import judgement, of_record

    async def work(workbench: Workbench) -> None:
        found, after = await workbench.eval_run(run), 0
        while page := await workbench.eval_records(found.id, after):
            after += len(page)
            for record in page:
                if record.label == case:
                    subject, judged = of_record(found.id, found.model, record, edited)
                    await workbench.review(judgement(subject, label, judged, f"human {by}", explanation=explain))
                    say(f"{subject}: {label}")
                    return
        raise MissingError(f"{found.id} has no case {case!r}", hint=f"`lathe eval show {found.id} --cases` lists them")

    shell.run(work)


@evaluate.command("prefer")
@click.argument("baseline")
@click.argument("run")
@click.argument("case")
@click.argument("label", type=click.Choice(["A", "B", "tie"]))
@click.option("--explain", default="", help="Why.")
@click.option("--by", default="me", show_default=True, help="Whose judgement it is.")
@click.pass_obj
def prefer(shell: Shell, baseline: str, run: str, case: str, label: str, explain: str, by: str) -> None:
    """Say which answer to CASE (as `task/case`) is better: A of BASELINE, B of RUN, or neither."""
    from lathe.engine.evals.duel import NAME, subject
    from lathe.engine.evals.reviews import Judged, judgement

    async def work(workbench: Workbench) -> None:
        runs = [await workbench.eval_run(baseline), await workbench.eval_run(run)]
        task, _, name = case.partition("/")
        found = [next(iter(await workbench.eval_case(one.id, task, name)), None) for one in runs]
        if found[0] is None or found[1] is None:
            raise MissingError(f"{runs[0].id} and {runs[1].id} do not both have the case {case!r}")
        judged = Judged(
            prompt=found[0].prompt, answer=found[0].response.text, model=runs[0].model, other=found[1].response.text,
            other_model=runs[1].model,
        )  # fmt: skip
        about = subject(runs[0].id, runs[1].id, found[1].label)
        await workbench.review(judgement(about, label, judged, f"human {by}", name=NAME, explanation=explain))
        say(f"{about}: {label}")

    shell.run(work)


@evaluate.command("judge")
@click.argument("baseline")
@click.argument("run")
@click.argument("model")
@click.option("--rubric", default="", help="What makes an answer the better one.")
@click.option("--limit", type=click.IntRange(min=1), help="A drawn sample of so many pairs.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0)
@click.option("--abstain", type=Finite(min=0), default=0.5, show_default=True, help="Nats of log-odds.")
@click.option("--threads", type=SOME_THREADS, help="Threads of the judge.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def judge_(
    shell: Shell, baseline: str, run: str, model: str, rubric: str, limit: int | None, seed: int, abstain: float,
    threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Let MODEL compare the answers of RUN with those of BASELINE, in both orders."""
    step = JudgeStep(
        of=run, baseline=baseline, model=reference(model), rubric=rubric, limit=limit, seed=seed, abstain=abstain,
        options=_options(None, threads, None),
    )  # fmt: skip
    raise SystemExit(run_step(shell, step, _show_duel, as_json=as_json))


@evaluate.command("calibrate")
@click.argument("judge")
@click.option("--by", "person", help="One reviewer; otherwise the last word of any.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def calibrate(shell: Shell, judge: str, person: str | None, as_json: bool) -> None:
    """JUDGE's verdicts against people's on the same pairs: agreement, kappa, position and length bias."""
    from lathe.engine.evals.duel import calibration

    async def work(workbench: Workbench) -> None:
        found = calibration(await workbench.reviews(), judge, person)
        put_json(found) if as_json else put(found.report().rstrip("\n"))

    shell.run(work, as_json=as_json)


@evaluate.command("harness")
@click.argument("model")
@click.argument("tasks", nargs=-1, required=True)
@click.option("--include", type=click.Path(path_type=Path), help="Folder with more tasks in the harness's YAML.")
@click.option("--limit", type=click.IntRange(min=1), help="Cases per task.")
@click.option("--fewshot", type=click.IntRange(min=0))
@click.option("--chat", is_flag=True, help="Through the model's chat template.")
@click.option("--ctx", "context", type=click.IntRange(min=8), help="Context to load the model with.")
@click.option("--threads", type=SOME_THREADS, help="Threads of the model.")
@click.option("--as", "baseline_name", metavar="NAME", help="Name the run as a baseline.")
@click.option("--detach", is_flag=True, help="Leave the job to the engine; print its id.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def harness_(
    shell: Shell, model: str, tasks: tuple[str, ...], include: Path | None, limit: int | None, fewshot: int | None,
    chat: bool, context: int | None, threads: int | None, baseline_name: str | None, detach: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run TASKS of lm-evaluation-harness on MODEL, offline; results are kept like those of a suite."""
    step = HarnessStep(
        model=reference(model), tasks=tasks, include=absolute(include), limit=limit,
        fewshot=fewshot, chat=chat, options=_options(context, threads, None), baseline_name=baseline_name,
    )  # fmt: skip
    raise SystemExit(run_step(shell, step, _show_rows, detach=detach, as_json=as_json))


@evaluate.command("reviews")
@click.option("--to", "style", type=click.Choice(["jsonl", "sft", "dpo"]), default="jsonl", show_default=True)
@click.pass_obj
def reviews_(shell: Shell, style: str) -> None:
    """Judgements as JSON lines: as they were given, or as examples for fine-tuning (SFT, DPO)."""
    from lathe.engine.evals import reviews

    async def work(workbench: Workbench) -> None:
        write = {"jsonl": reviews.plain, "sft": reviews.sft, "dpo": reviews.dpo}[style]
        put(write(await workbench.reviews()).rstrip("\n"))

    shell.run(work)


@evaluate.command("baseline")
@click.argument("name")
@click.argument("run", required=False)
@click.option("--forget", is_flag=True, help="Drop the name.")
@click.pass_obj
def baseline_(shell: Shell, name: str, run: str | None, forget: bool) -> None:
    """Let NAME stand for RUN."""
    if forget == (run is not None):
        raise click.UsageError("give a run, or --forget")

    async def work(workbench: Workbench) -> None:
        found = await workbench.set_baseline(name, run)
        say(f"{name} is {found.id}" if found else f"{name} is forgotten")

    shell.run(work)


@evaluate.command("rm")
@click.argument("run")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def remove(shell: Shell, run: str, yes: bool) -> None:
    """Forget RUN with its cases."""
    need_yes(yes, f"Forget {run} with every case?")

    async def work(workbench: Workbench) -> None:
        say(f"{(await workbench.remove_eval_run(run)).id} is forgotten")

    shell.run(work)


def _options(context: int | None, threads: int | None, gpu_layers: int | None) -> LoadOptions | None:
    if context is None and threads is None and gpu_layers is None:
        return None
    return LoadOptions(context=context, threads=threads, gpu_layers=gpu_layers)


def _show_duel(job: Job) -> None:
    assert job.outcome is not None
    figures = job.outcome.figures
    put(f"{figures['run']} won {figures['won']}, lost {figures['lost']}, tied {figures['tied']} of {figures['pairs']} "
        f"pairs; {figures['identical']} answers were identical")  # fmt: skip
    share, low, high = (figures[f"preferred{end}"] for end in ("", ".low", ".high"))
    if isinstance(share, float) and isinstance(low, float) and isinstance(high, float):
        word = "preferred" if low > 0.5 else "not preferred" if high < 0.5 else "noise"
        put(f"preferred in {share:.0%} [{low:.0%}, {high:.0%}] of decided pairs: {word}")


def _show_rows(job: Job) -> None:
    assert job.outcome is not None
    figures = job.outcome.figures
    rows = [
        (row["task"], f"{row['metric']}{' *' if row['primary'] else ''}", f"{row['value']:.4g}",
         f"{row['low']:.4g} .. {row['high']:.4g}", row["cases"], row["interval"])
        for row in job.outcome.rows
    ]  # fmt: skip
    put_table(("task", "metric", "value", "95 %", "cases", "interval"), rows, right=(2, 4))
    say(f"{figures['run']}: {figures['cases']} answers, {figures['failed']} failed, {figures['cached']} from the cache")


def _show_gates(job: Job) -> None:
    assert job.outcome is not None
    for row in job.outcome.rows:
        word = "ok" if row["passed"] else f"waived ({row['waived']})" if row["waived"] else "MISSED"
        value = row["value"]
        shown = f"{value:.6g}" if isinstance(value, float | int) else "not measured"
        put(f"{word:<8} {row['gate']}  ({row['figure']} is {shown})")
    put("passed" if job.outcome.figures["passed"] else "FAILED")


def _show_runs(runs: list[EvalRun]) -> None:
    rows = []
    for run in runs:
        head = [
            f"{one.task} {one.primary} {one.metrics[one.primary].value:.4g}"
            for one in run.summaries if one.primary in one.metrics
        ]  # fmt: skip
        rows.append((run.id, ",".join(run.aliases), run.suite, run.model, run.state, f"{run.done}/{run.total}",
                     clock(run.created_at), "; ".join(head)))  # fmt: skip
    put_table(("run", "baseline", "suite", "model", "state", "answers", "begun", "primary figures"), rows, right=(5,))


def _show_run(run: EvalRun) -> None:
    put(f"{run.id}  {run.suite} {run.suite_version} on {run.model}: {run.state}, {run.done} of {run.total} answers, "
        f"{run.failed} failed, {run.cached} from the cache, {run.seconds:.1f} s")  # fmt: skip
    rows = [
        (one.task, f"{name}{' *' if name == one.primary else ''}", f"{interval.value:.4g}",
         f"{interval.low:.4g} .. {interval.high:.4g}", interval.n)
        for one in run.summaries for name, interval in one.metrics.items()
    ]  # fmt: skip
    put_table(("task", "metric", "value", "95 %", "cases"), rows, right=(2, 4))


def _show_comparison(comparison: Comparison) -> None:
    rows = [
        (one.task, f"{one.metric}{' *' if one.primary else ''}", f"{one.before.value:.4g}", f"{one.after.value:.4g}",
         f"{one.difference.value:+.4g} [{one.difference.low:+.4g}, {one.difference.high:+.4g}]",
         f"{one.p_adjusted:.3g}", "-" if one.difference.detectable is None else f"{one.difference.detectable:.3g}",
         one.finding + ("" if one.material or one.finding in ("noise", "same") else " (small)"))
        for one in comparison.metrics
    ]  # fmt: skip
    runs = (comparison.base.id, comparison.other.id)
    header = ("task", "metric", *runs, "difference 95 %", "p", "detectable", "finding")
    put_table(header, rows, right=(2, 3, 5, 6))
    counts = comparison.counts
    put(f"{counts['broken']} broken, {counts['fixed']} fixed, {counts['changed']} changed, {counts['same']} the same")
    for change in comparison.changes[:20]:
        before, after = (" ".join(text.split())[:48] for text in (change.before, change.after))
        put(f"  {change.kind:<8} {change.label}  {before!r} -> {after!r}")
    if len(comparison.changes) > 20:
        put(f"  ... and {len(comparison.changes) - 20} more: `lathe eval export {comparison.other.id} --to html`")
    for text in comparison.warnings:
        say(f"note: {text}")


def _suite(name: str) -> str:
    """A file as seen from here, else a suite's name: a folder of that name is none."""
    return reference(name) if Path(name).suffix else name
