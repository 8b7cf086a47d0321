"""`/v1/feedback`: what users of a served model thought of its answers, kept beside the reviews of eval runs.

The row is `{name, label, score, source, explanation}` as the review tools have it, about one answer's id. The texts
are kept only where the client sends them: the server itself remembers no prompt. Invariant: a source names the key it
came over, so that nobody who may ask a model can speak as a reviewer of this machine.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from lathe.engine.evals.reviews import Judged
from lathe.engine.http.call import Call, Json, Reply
from lathe.engine.http.problems import Problem
from lathe.engine.http.wire import ModelName
from lathe.store.evals import Review
from msgspec import Meta

Word = Annotated[str, Meta(min_length=1, max_length=100)]
Remark = Annotated[str, Meta(max_length=4000)]
Passage = Annotated[str, Meta(max_length=100_000)]


class FeedbackBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `/v1/feedback` takes: a label or a score at least."""

    name: Word
    """What is judged: `quality`, `tone`, `preference`, ..."""
    id: Annotated[str, Meta(max_length=200)] | None = None
    """Of the answer: `chatcmpl-...`, `msg_...`, `resp_...`, or the request's `req_...`."""
    label: Annotated[str, Meta(max_length=100)] | None = None
    """`accept`, `reject`, `edit`, or any word of the client's own."""
    score: Annotated[float, Meta(ge=-1e6, le=1e6)] | None = None
    source: Annotated[str, Meta(max_length=100)] | None = None
    """Who judges, in the client's words."""
    explanation: Remark = ""
    model: ModelName | None = None
    prompt: Passage | None = None
    """With `answer`: makes the review exportable as a training example."""
    answer: Passage | None = None
    edited: Passage | None = None
    """The answer as it should have been; belongs to the label `edit`."""


class Feedback(msgspec.Struct):
    """A review as it was kept."""

    id: int
    object: Literal["feedback"]
    created: int
    subject: str
    name: str
    label: str
    score: float | None
    source: str
    explanation: str


async def feedback(call: Call) -> Reply:
    """POST /v1/feedback."""
    body: FeedbackBody = call.body
    if not body.label and body.score is None:
        raise Problem(400, "give a label or a score", param="label", code="missing_required_parameter")
    if (body.label == "edit") != (body.edited is not None):
        message = "an edit needs the edited text, and only an edit has one"
        raise Problem(400, message, param="edited", code="invalid_value")
    if (body.prompt is None) != (body.answer is None):
        raise Problem(400, "prompt and answer go together", param="answer", code="invalid_value")
    entry = await call.find(body.model) if body.model is not None else None
    judged = Judged(
        prompt=body.prompt or "", answer=body.answer or "", model=entry.name if entry else "", edited=body.edited
    )
    who = f"api {call.principal.name}"
    kept = await call.service.workbench.review(
        Review(
            subject=f"http/{body.id}" if body.id else f"http/{call.id}",
            name=body.name,
            label=body.label or "",
            score=body.score,
            source=f"{who}: {body.source}" if body.source else who,
            explanation=body.explanation,
            at=0.0,
            body=msgspec.json.encode(judged).decode(),
        )
    )
    return Json(
        Feedback(kept.number, "feedback", int(kept.at), kept.subject, kept.name, kept.label, kept.score, kept.source,
                 kept.explanation)
    )  # fmt: skip
