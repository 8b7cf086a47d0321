"""What the server says of itself: health, models, props, slots, metrics.

Invariant: nothing here shows a prompt, a path of the file system or another key's name; `/health` shows nothing at all.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from lathe.engine.generation import Sampling
from lathe.engine.http.call import Call, Json, Reply, Text
from lathe.engine.http.problems import Problem
from lathe.engine.release import RELEASE
from lathe.engine.states import WorkerState
from lathe.quantize.card import ModelCard
from lathe.store.models import ModelEntry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4


class Health(msgspec.Struct):
    """The server answers; `degraded`: a model runs, but not where or how it was meant to (FAULTS R11)."""

    status: Literal["ok", "degraded"]


class ModelMeta(msgspec.Struct):
    """llama-server's facts of a model; null is unknown."""

    n_vocab: int | None
    n_ctx_train: int | None
    n_embd: int | None
    n_params: int | None
    size: int


class ModelBody(msgspec.Struct):
    """One model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    meta: ModelMeta
    loaded: bool


class ModelList(msgspec.Struct):
    """The models that this key may use."""

    object: Literal["list"]
    data: list[ModelBody]


class SlotBody(msgspec.Struct):
    """One request in a model's worker."""

    id: int
    model: str
    is_processing: bool
    stage: str
    n_ctx: int | None
    n_prompt_tokens: int
    n_prompt_tokens_processed: int
    n_decoded: int
    age_s: float
    own: bool
    """Whether the asking key sent it."""


class Props(msgspec.Struct):
    """llama-server's global properties of one model."""

    default_generation_settings: dict[str, Any]
    total_slots: int | None
    model_alias: str
    model_path: str
    """The model's name: where its file lies is nobody's business here."""
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    modalities: dict[str, bool]
    build_info: str
    is_sleeping: bool


async def health(call: Call) -> Reply:
    """GET /health."""
    return Json(Health("degraded" if await call.service.degraded() else "ok"))


async def list_models(call: Call) -> Reply:
    """GET /v1/models."""
    entries = await call.service.catalogue.entries(call.principal.models)
    loaded = {worker.model_id for worker in await _workers(call)}
    listed = [_model(entry, entry.id in loaded) for entry in entries]
    for alias, entry in await call.service.catalogue.aliases(call.principal.models):
        listed.append(msgspec.structs.replace(_model(entry, entry.id in loaded), id=alias))
    return Json(ModelList("list", listed))


async def show_model(call: Call) -> Reply:
    """GET /v1/models/NAME."""
    entry = await call.find(call.argument)
    return Json(_model(entry, any(worker.model_id == entry.id for worker in await _workers(call))))


async def props(call: Call) -> Reply:
    """GET /props."""
    entry = await call.find(call.query.get("model"))
    details = await call.service.workbench.model(entry.id)
    info = details.worker.info if details.worker is not None else None
    context = info.context if info is not None else details.card.context_length
    return Json(
        Props(
            default_generation_settings={"n_ctx": context, "params": default_params()},
            total_slots=info.slots if info is not None else None,
            model_alias=entry.name,
            model_path=entry.name,
            chat_template=details.card.chat_template or (info.chat_template if info is not None else None),
            bos_token=info.bos_token if info is not None else None,
            eos_token=info.eos_token if info is not None else None,
            modalities={"vision": False, "audio": False},
            build_info=f"lathe {RELEASE}",
            is_sleeping=info is None,
        )
    )


def default_params() -> dict[str, Any]:
    """Return what sampling does when a request says nothing."""
    return {name: getattr(Sampling(), name) for name in Sampling.__struct_fields__ if name != "logit_bias"}


async def slots(call: Call) -> Reply:
    """GET /slots."""
    wanted = call.query.get("model")
    only = (await call.find(wanted)).id if wanted else None
    allowed = {entry.id for entry in await call.service.catalogue.entries(call.principal.models)}
    rows: list[SlotBody] = []
    for worker in await _workers(call):
        if worker.model_id in allowed and (only is None or worker.model_id == only):
            rows += _slots(worker, f"key:{call.principal.name}")
    return Json(rows)


def _slots(worker: WorkerState, principal: str) -> list[SlotBody]:
    return [
        SlotBody(
            id=number,
            model=worker.name,
            is_processing=request.stage != "waiting",
            stage=request.stage,
            n_ctx=worker.info.context if worker.info is not None else None,
            n_prompt_tokens=request.prompt_tokens,
            n_prompt_tokens_processed=request.prefilled,
            n_decoded=request.generated,
            age_s=round(request.age_s, 3),
            own=request.principal == principal,
        )
        for number, request in enumerate(worker.stats.requests)
    ]


async def metrics(call: Call) -> Reply:
    """GET /metrics."""
    only = call.query.get("model")
    if only is not None:
        only = (await call.find(only)).name
    elif call.principal.models:
        raise Problem(403, "this key may use some models only: name one with ?model=", code="missing_scope")
    snapshot = await call.service.workbench.snapshot()
    text = call.service.metrics.render(snapshot, call.service.server_state(), only)
    return Text(text, CONTENT_TYPE_PLAIN_0_0_4)


async def _workers(call: Call) -> tuple[WorkerState, ...]:
    return (await call.service.workbench.snapshot()).workers


def _model(entry: ModelEntry, loaded: bool) -> ModelBody:
    card = card_of(entry)
    meta = ModelMeta(card.vocabulary, card.context_length, card.embedding_length, card.parameters, entry.bytes)
    return ModelBody(entry.name, "model", int(entry.added_at), "lathe", meta, loaded)


def card_of(entry: ModelEntry) -> ModelCard:
    """Return the cached header facts of a model; empty where none are cached or they are of an older form."""
    try:
        return msgspec.convert(entry.card, ModelCard)
    except msgspec.ValidationError:
        return ModelCard(format=entry.format)
