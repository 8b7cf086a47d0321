"""LoRA adapters as clients see them: numbered, with a scale per request or for all requests of this server.

An adapter's name is its file's name without extension; its number is its place among the loaded ones, as in
llama-server. Invariant: an adapter that the worker has not loaded is a 400, never a silent no-op.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated

import msgspec
from lathe.engine.http.call import Call, Json, Reply
from lathe.engine.http.problems import Problem
from lathe.engine.http.wire import LoraScale
from lathe.store.models import ModelEntry
from msgspec import Meta

DEFAULT_SCALE = 1.0


class AdapterBody(msgspec.Struct):
    """One adapter in the list."""

    id: int
    path: str
    """The file's name; where it lies is nobody's business here."""
    scale: float


SetScales = Annotated[list[LoraScale], Meta(max_length=64)]


async def loaded(call: Call, entry: ModelEntry) -> list[str]:
    """Return the names of the adapters loaded beside a model."""
    for worker in (await call.service.workbench.snapshot()).workers:
        if worker.model_id == entry.id:
            return [PurePath(path).stem for path in worker.options.adapters]
    return []


async def scales(call: Call, entry: ModelEntry, lora: list[LoraScale] | None) -> dict[str, float]:
    """Return the scales of a request: its own, or those set for the server."""
    if lora is None:
        set_for = call.service.adapter_scales.get(entry.id)
        if set_for is not None or not call.service.options.options.adapters:
            return set_for or {}
        return dict.fromkeys(await loaded(call, entry), DEFAULT_SCALE)
    return _named(await loaded(call, entry), lora)


async def list_adapters(call: Call) -> Reply:
    """GET /lora-adapters."""
    entry = await call.find(call.query.get("model"))
    return Json(await _bodies(call, entry))


async def set_adapters(call: Call) -> Reply:
    """POST /lora-adapters: scales for all requests that name none; adapters left out get 0."""
    entry = await call.find(call.query.get("model"))
    names = await loaded(call, entry)
    chosen = _named(names, call.body)
    call.service.adapter_scales[entry.id] = {name: chosen.get(name, 0.0) for name in names}
    return Json(await _bodies(call, entry))


async def _bodies(call: Call, entry: ModelEntry) -> list[AdapterBody]:
    set_for = call.service.adapter_scales.get(entry.id, {})
    names = await loaded(call, entry)
    return [AdapterBody(number, name, set_for.get(name, DEFAULT_SCALE)) for number, name in enumerate(names)]


def _named(names: list[str], lora: list[LoraScale]) -> dict[str, float]:
    given: dict[str, float] = {}
    for item in lora:
        known = item.id in names if isinstance(item.id, str) else item.id < len(names)
        if not known:
            message = f"there is no LoRA adapter {item.id}: loaded are {', '.join(names) or 'none'}"
            raise Problem(400, message, param="lora", code="invalid_value")
        given[item.id if isinstance(item.id, str) else names[item.id]] = item.scale
    return {name: given.get(name, 0.0) for name in names}
