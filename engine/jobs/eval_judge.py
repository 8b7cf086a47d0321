"""Let a local model compare the answers of two eval runs, in both orders, and keep its verdicts as reviews.

Invariant: the figures come with their interval, and a judge that abstains or follows the order decides nothing.
"""

from __future__ import annotations

from lathe.engine.jobs.services import EngineWorkbench, ServiceContext
from lathe.engine.jobs.values import Figure, Outcome
from lathe.engine.steps import JudgeStep


async def run(step: JudgeStep, context: ServiceContext) -> Outcome:
    """Ask about every pair of answers that differ."""
    from lathe.engine.evals.duel import duel
    from lathe.engine.evals.judge import Judge

    workbench: EngineWorkbench = context.workbench
    book = workbench.evals.book
    base, other = await book.run(step.baseline), await book.run(step.of)
    before, after = await book.records(base), await book.records(other)
    await context.progress("loading", 0)
    await workbench.load(step.model, step.options)
    name = (await workbench.model(step.model)).entry.name

    async def report(done: int, total: int) -> None:
        await context.progress("judging", done, total, "pair")

    judge = Judge(workbench, step.model, rubric=step.rubric, abstain=step.abstain)
    found = await duel(
        judge, name, base, before, other, after, book.review, report, limit=step.limit, seed=step.seed
    )  # fmt: skip
    share = found.preferred
    decided = found.won + found.lost
    figures: dict[str, Figure] = {
        "run": other.id, "baseline": base.id, "pairs": decided + found.tied, "won": found.won, "lost": found.lost,
        "tied": found.tied, "identical": found.identical, "preferred": share.value if decided else None,
        "preferred.low": share.low, "preferred.high": share.high,
    }  # fmt: skip
    context.log(f"{name} prefers {other.id} in {found.won}, {base.id} in {found.lost}, neither in {found.tied} pairs")
    return Outcome(figures=figures)
