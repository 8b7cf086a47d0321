"""What Ollama's clients ask about models: `/api/tags`, `/api/show`, `/api/ps`, `/api/version`."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from lathe.engine.http.call import Call, Json, Reply
from lathe.engine.http.ollama_in import OllamaShowBody
from lathe.engine.http.status import card_of, default_params
from lathe.engine.release import RELEASE
from lathe.engine.states import WorkerState
from lathe.quantize.card import ModelCard
from lathe.store.models import ModelEntry


class Details(msgspec.Struct):
    """What kind of model it is; empty strings are unknown, as Ollama has it."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Tag(msgspec.Struct):
    """One model."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class Tags(msgspec.Struct):
    """The models that this key may use."""

    models: list[Tag]


class Running(msgspec.Struct, omit_defaults=True):
    """One model in memory."""

    name: str
    model: str
    size: int
    digest: str
    details: Details
    size_vram: int
    context_length: int | None = None
    expires_at: str | None = None


class RunningList(msgspec.Struct):
    """The models in memory."""

    models: list[Running]


class Shown(msgspec.Struct):
    """One model with everything its header says."""

    license: str
    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, str | int | None]
    capabilities: list[str]
    modified_at: str


class Version(msgspec.Struct):
    """This program's release."""

    version: str


async def tags(call: Call) -> Reply:
    """GET /api/tags."""
    entries = await call.service.catalogue.entries(call.principal.models)
    return Json(
        Tags(
            [
                Tag(entry.name, entry.name, _time(entry.added_at), entry.bytes, _digest(entry), _details(entry))
                for entry in entries
            ]
        )
    )


async def show(call: Call) -> Reply:
    """POST /api/show."""
    body: OllamaShowBody = call.body
    entry = await call.find(body.model or body.name)
    details = await call.service.workbench.model(entry.id)
    card, info = details.card, details.worker.info if details.worker is not None else None
    able = info.capabilities if info is not None else ()
    capabilities = ["embedding"] if _embeds(card) else ["completion"]
    if "infill" in able:
        capabilities.append("insert")
    if card.chat_template is not None and "tools" in card.chat_template:
        capabilities.append("tools")
    parameters = "\n".join(f"{name} {value}" for name, value in default_params().items() if value is not None)
    return Json(
        Shown(
            card.licence or "", "", parameters, card.chat_template or "", _details(entry), _info(card), capabilities,
            _time(entry.added_at),
        )
    )  # fmt: skip


async def running(call: Call) -> Reply:
    """GET /api/ps."""
    entries = {entry.id: entry for entry in await call.service.catalogue.entries(call.principal.models)}
    workers = (await call.service.workbench.snapshot()).workers
    found = [_running(entries[worker.model_id], worker) for worker in workers if worker.model_id in entries]
    return Json(RunningList(found))


async def version(call: Call) -> Reply:
    """GET /api/version."""
    return Json(Version(RELEASE))


def _running(entry: ModelEntry, worker: WorkerState) -> Running:
    info, ttl = worker.info, worker.options.ttl_s
    devices = info.device_bytes if info is not None else {}
    size = sum(devices.values()) or (info.weights_bytes if info is not None else None) or entry.bytes
    return Running(
        entry.name, entry.name, size, _digest(entry), _details(entry),
        sum(count for device, count in devices.items() if device != "cpu"),
        info.context if info is not None else None,
        _time(worker.last_used_at + ttl) if ttl is not None and worker.last_used_at is not None else None,
    )  # fmt: skip


def _details(entry: ModelEntry) -> Details:
    card = card_of(entry)
    family = card.architecture or ""
    return Details(
        entry.parent or "", entry.format, family, [family] if family else [], _size(card.parameters),
        card.file_type or "",
    )  # fmt: skip


def _size(parameters: int | None) -> str:
    if parameters is None:
        return ""
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"


def _info(card: ModelCard) -> dict[str, str | int | None]:
    family = card.architecture or "unknown"
    return {
        "general.architecture": card.architecture,
        "general.file_type": card.file_type,
        "general.parameter_count": card.parameters,
        f"{family}.block_count": card.layers,
        f"{family}.context_length": card.context_length,
        f"{family}.embedding_length": card.embedding_length,
        f"{family}.attention.head_count": card.heads,
        f"{family}.attention.head_count_kv": card.kv_heads,
        "tokenizer.ggml.model": card.tokenizer,
        "tokenizer.ggml.pre": card.pre_tokenizer,
    }


def _embeds(card: ModelCard) -> bool:
    return card.pooling is not None


def _digest(entry: ModelEntry) -> str:
    return entry.sha256 or entry.id


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
