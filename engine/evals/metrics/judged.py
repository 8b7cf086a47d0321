"""The judgement of a local model: does the answer satisfy a rubric?

The verdict is read from likelihoods (`lathe.engine.evals.judge`); within the abstain zone there is none, and the case
stands in no figure, which the number of cases shows. Invariant: the note says which model judged, and by how much.
"""

from __future__ import annotations

import math

import msgspec
from lathe.engine.errors import ConfigError
from lathe.engine.evals import templates
from lathe.engine.evals.judge import ABSTAIN, Judge
from lathe.engine.evals.metrics import options as given
from lathe.engine.evals.metrics.metric import Consultation, Finding, Metric, Options
from lathe.engine.evals.values import Item, Response, Task


class JudgeOptions(msgspec.Struct, frozen=True):
    rubric: str
    """What the answer must satisfy; a template over the case's fields."""
    model: str = "${judge}"
    """The judge; by default the suite's variable `judge`."""
    abstain: float = ABSTAIN
    """Nats of log-odds below which there is no verdict."""


def rubric(name: str, task: Task, options: Options) -> Metric:
    """Share of answers that satisfy the rubric, of those on which the judge has a verdict."""
    if "rubric" not in options:
        raise ConfigError(f"metric {name!r} needs the option 'rubric'")
    chosen = given.read(JudgeOptions, name, options)
    if problem := templates.check_template(chosen.rubric):
        raise ConfigError(f"metric {name!r}: rubric: {problem}")
    if not 0 <= chosen.abstain < math.inf:
        raise ConfigError(f"metric {name!r}: `abstain` is a number of nats from 0")

    async def consult(consultation: Consultation, item: Item, response: Response) -> Finding:
        model = templates.substitute(chosen.model, consultation.variables)
        rule = templates.render(chosen.rubric, consultation.variables | item.fields)
        judge = Judge(consultation.workbench, model, rubric=rule, abstain=chosen.abstain)
        verdict = await judge.rule(item.prompt_text(), response.text)
        note = f"{verdict.label} by {model}, log-odds {verdict.log_odds:+.2f}"
        return Finding(None if verdict.label == "abstain" else (float(verdict.label == "pass"), 1.0), note)

    return Metric(name=name, consult=consult, share=True, asks=chosen.model)
