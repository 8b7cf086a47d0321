"""The report as one HTML file: figures, plots, gates, cases. It opens from a disk without a network.

Invariant: everything that came from a suite or a model is escaped, and the page carries a policy that forbids scripts
and requests.
"""

from __future__ import annotations

from html import escape

from lathe.engine.evals.reports import svg
from lathe.engine.evals.reports.text import interval_text, number
from lathe.engine.evals.results import Comparison, EvalRun, Record, Verdict

MAX_CASES = 2000
_CUT = 600
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root{color-scheme:light dark}body{font:14px/1.45 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%;margin:.6rem 0}th,td{padding:.25rem .5rem;border-bottom:1px solid #8884;
text-align:left;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;font:12px/1.4 ui-monospace,monospace}
.bad{color:#c43d3d;font-weight:600}.good{color:#2d8a4e;font-weight:600}.faint{opacity:.65;fill:currentColor}
svg{width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:currentColor}summary{cursor:pointer}
"""


def page(
    run: EvalRun, records: list[Record], comparison: Comparison | None = None, verdict: Verdict | None = None
) -> str:
    """The whole report."""
    title = f"{run.suite} on {run.model}"
    body = [f"<h1>{escape(title)}</h1>", _head(run)]
    if verdict is not None:
        body.append(_verdict(verdict))
    body += ["<h2>Figures</h2>", _figures(run, comparison)]
    if comparison is not None:
        body += [f"<h2>Against {escape(comparison.base.id)} ({escape(comparison.base.model)})</h2>",
                 _comparison(comparison)]  # fmt: skip
    margins = [record.values["margin"] for record in records if "margin" in record.values]
    body += [svg.histogram(margins, "margin of the right choice, nats per character")]
    body += ["<h2>Cases</h2>", _cases(records)]
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title><style>{_STYLE}</style>'
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _head(run: EvalRun) -> str:
    facts = (
        ("run", run.id), ("suite", f"{run.suite} {run.suite_version}"), ("suite sha256", run.suite_sha256),
        ("model", run.model), ("model sha256", run.model_key), ("answers", f"{run.done} of {run.total}"),
        ("failed", str(run.failed)), ("from the cache", str(run.cached)), ("seconds", f"{run.seconds:.1f}"),
        ("Lathe", run.release),
    )  # fmt: skip
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts)
    skipped = "".join(f"<li>{escape(text)}</li>" for text in run.skipped)
    return f"<table>{rows}</table>" + (f"<p>Left out:</p><ul>{skipped}</ul>" if skipped else "")


def _verdict(verdict: Verdict) -> str:
    word = '<span class="good">PASSED</span>' if verdict.passed else '<span class="bad">FAILED</span>'
    rows = ""
    for gate in verdict.gates:
        result = "passed" if gate.passed else "waived" if gate.waived else '<span class="bad">missed</span>'
        rows += (
            f"<tr><td>{escape(gate.gate)}</td><td>{result}</td><td>{escape(gate.figure)}</td>"
            f'<td class="n">{number(gate.value)}</td></tr>'
        )
    excuses = "".join(f"<li>waiver: {escape(text)}</li>" for text in verdict.waivers)
    excuses += "".join(f'<li class="bad">expired waiver: {escape(text)}</li>' for text in verdict.expired)
    head = "<tr><th>gate</th><th>result</th><th>figure</th><th>value</th></tr>"
    return f"<h2>Gates: {word}</h2><table>{head}{rows}</table>" + (f"<ul>{excuses}</ul>" if excuses else "")


def _figures(run: EvalRun, comparison: Comparison | None) -> str:
    before = {(m.task, m.metric): m.before for m in comparison.metrics} if comparison else {}
    rows, plot = "", []
    for summary in run.summaries:
        for name, interval in summary.metrics.items():
            star = " ★" if name == summary.primary else ""
            rows += (
                f"<tr><td>{escape(summary.task)}</td><td>{escape(name)}{star}</td>"
                f'<td class="n">{interval_text(interval)}</td><td class="n">{interval.n}</td>'
                f"<td>{interval.method}</td></tr>"
            )
            marks = [(svg.AFTER, interval)]
            if (summary.task, name) in before:
                marks.insert(0, (svg.BEFORE, before[summary.task, name]))
            plot.append((f"{summary.task} {name}", marks))
        for kind, named in (("tag", summary.tags), ("answered alike after", summary.invariance)):
            for name, interval in named.items():
                rows += (
                    f'<tr class="faint"><td>{escape(summary.task)}</td><td>{kind} {escape(name)}</td><td class="n">'
                    f'{interval_text(interval)}</td><td class="n">{interval.n}</td><td>{interval.method}</td></tr>'
                )
    head = "<tr><th>task</th><th>metric</th><th>value [95 %]</th><th>cases</th><th>interval</th></tr>"
    return f"<table>{head}{rows}</table>{svg.intervals(plot)}"


def _comparison(comparison: Comparison) -> str:
    counts = comparison.counts
    told = (
        f"<p>{counts['broken']} broken, {counts['fixed']} fixed, {counts['changed']} changed, "
        f"{counts['same']} the same.</p>"
    )
    rows, plot = "", []
    for metric in comparison.metrics:
        difference = metric.difference
        style = {"worse": "bad", "better": "good"}.get(metric.finding, "faint")
        rows += (
            f"<tr><td>{escape(metric.task)}</td><td>{escape(metric.metric)}{' ★' if metric.primary else ''}</td>"
            f'<td class="n">{number(metric.before.value)}</td><td class="n">{number(metric.after.value)}</td>'
            f'<td class="n">{number(difference.value)} [{number(difference.low)}, {number(difference.high)}]</td>'
            f'<td class="n">{number(metric.p_adjusted)}</td><td class="n">{number(difference.detectable)}</td>'
            f'<td class="{style}">{metric.finding}{"" if metric.material or style == "faint" else " (small)"}</td></tr>'
        )
        base = abs(metric.before.value) or 1.0
        plot.append(
            (f"{metric.task} {metric.metric}", difference.low / base, difference.value / base, difference.high / base,
             metric.finding)
        )  # fmt: skip
    head = (
        "<tr><th>task</th><th>metric</th><th>before</th><th>after</th><th>difference [95 %]</th><th>p</th>"
        "<th>detectable</th><th>finding</th></tr>"
    )
    warnings = "".join(f"<li>{escape(text)}</li>" for text in comparison.warnings)
    changed = "".join(
        f"<tr><td>{escape(change.label)}</td><td>{change.kind}</td>"
        f"<td><pre>{_cut(' / '.join(change.targets))}</pre></td>"
        f"<td><pre>{_cut(change.before)}</pre></td><td><pre>{_cut(change.after)}</pre></td></tr>"
        for change in comparison.changes[:MAX_CASES]
    )
    cases = (
        "<details open><summary>Changed cases</summary><table><tr><th>case</th><th></th><th>expected</th>"
        f"<th>before</th><th>after</th></tr>{changed}</table></details>"
        if changed
        else ""
    )
    return f"{told}<table>{head}{rows}</table>{svg.differences(plot)}<ul>{warnings}</ul>{cases}"


def _cases(records: list[Record]) -> str:
    rows = "".join(
        f"<tr><td>{escape(record.label)}</td><td><pre>{_cut(record.prompt)}</pre></td>"
        f"<td><pre>{_cut(' / '.join(record.targets))}</pre></td><td><pre>{_cut(record.answer())}</pre></td>"
        f'<td class="n">{"<br>".join(_judgements(record))}</td></tr>'
        for record in records[:MAX_CASES]
    )
    more = f"<p>... and {len(records) - MAX_CASES} more.</p>" if len(records) > MAX_CASES else ""
    head = "<tr><th>case</th><th>prompt</th><th>expected</th><th>answer</th><th>figures</th></tr>"
    return f"<details><summary>{len(records)} answers</summary><table>{head}{rows}</table>{more}</details>"


def _judgements(record: Record) -> list[str]:
    """Each figure of a case, with the reason where its metric gives one."""
    names = dict.fromkeys((*record.values, *record.notes))
    figures = {name: f"{escape(name)} {number(record.values.get(name))}" for name in names}
    return [
        text + (f'<br><span class="faint">{_cut(record.notes[name])}</span>' if name in record.notes else "")
        for name, text in figures.items()
    ]


def _cut(text: str) -> str:
    return escape(text if len(text) <= _CUT else text[: _CUT - 1] + "…")
