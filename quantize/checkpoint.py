"""Checkpoint folders in the Hugging Face layout: what is in them, read without running or unpickling anything.

`read_checkpoint` looks at the small files and the weights' headers; tensors are read later, one at a time, through
`open_weights`. Invariant: every path that is opened is a plain name inside the folder, and no code of the checkpoint
ever runs.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from lathe.quantize.errors import CheckpointError, InputMissing, UnsafeError
from lathe.quantize.safetensors import Array, SafetensorsFile, TensorInfo

MAX_CONFIG_BYTES = 16 << 20
MAX_TOKENIZER_BYTES = 128 << 20
MAX_TEMPLATE_BYTES = 256 << 10
MAX_SHARDS = 4096

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_INDEX = "model.safetensors.index.json"
_NUMBERED = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_HOSTILE_FIELDS = ("_attn_implementation_internal", "custom_pipelines")
"""Config fields through which published exploits made transformers import foreign code; nothing honest needs them."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint folder whose small files are parsed and whose shards are all there."""

    folder: Path
    config: dict[str, Any]
    """config.json; a multimodal model's text_config is merged over the top level."""
    generation: dict[str, Any] = {}
    tokenizer: dict[str, Any] = {}
    """tokenizer_config.json."""
    modules: list[dict[str, Any]] = []
    """modules.json of sentence-transformers."""
    chat_template: str | list[dict[str, str]] | None = None
    """One template, or named ones."""
    shards: tuple[Path, ...] = ()
    tensors: dict[str, TensorInfo] = {}
    """In the order of the shards, by name within each."""
    home: dict[str, Path] = {}
    """Tensor name -> its shard."""
    remote_code: tuple[str, ...] = ()
    """Why this checkpoint asks to run its own Python; it is never run."""

    @property
    def architecture(self) -> str | None:
        """Class name in config.json, such as `LlamaForCausalLM`."""
        names = self.config.get("architectures")
        return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None

    @property
    def parameters(self) -> int:
        return sum(math.prod(info.shape) for info in self.tensors.values())

    def file(self, name: str) -> Path | None:
        """Return a file of the folder by its plain name; None when it is missing."""
        path = self.folder / name
        return path if path.is_file() else None


class Weights:
    """The open shards of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, files: dict[Path, SafetensorsFile]) -> None:
        self._home = checkpoint.home
        self._files = files

    def read(self, name: str) -> Array:
        """View a tensor; see `SafetensorsFile.read`."""
        return self._files[self._home[name]].read(name)

    def release(self, name: str) -> None:
        """Drop a tensor's pages from memory."""
        self._files[self._home[name]].release(name)


@contextmanager
def open_weights(checkpoint: Checkpoint) -> Iterator[Weights]:
    """Open all shards; refuse a shard whose header changed since the checkpoint was read."""
    with ExitStack() as stack:
        files = {path: stack.enter_context(SafetensorsFile(path)) for path in checkpoint.shards}
        for name, info in checkpoint.tensors.items():
            if files[checkpoint.home[name]].tensors.get(name) != info:
                raise CheckpointError(f"{checkpoint.home[name]} changed while it was being read")
        yield Weights(checkpoint, files)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises `InputMissing` without a folder or config.json, `UnsafeError` for pickled weights and hostile config fields,
    `CheckpointError` for shards that are missing or contradict the index.
    """
    _refuse_pickle_file(folder)
    if not folder.is_dir():
        raise InputMissing(f"there is no checkpoint folder at {folder}")
    if not (folder / "config.json").is_file():
        raise InputMissing(f"{folder} has no config.json", hint="name the folder that holds the checkpoint's files")
    config = read_json(folder / "config.json")
    tokenizer = _optional(folder / "tokenizer_config.json")
    for document, name in ((config, "config.json"), (tokenizer, "tokenizer_config.json")):
        _refuse_hostile(document, folder / name)
    remote_code = tuple(
        f"{name} has auto_map"
        for document, name in ((config, "config.json"), (tokenizer, "tokenizer_config.json"))
        if "auto_map" in document
    )
    if isinstance(config.get("text_config"), dict):
        config = {**config, **config["text_config"], "architectures": config.get("architectures")}
    shards = _shards(folder)
    tensors: dict[str, TensorInfo] = {}
    home: dict[str, Path] = {}
    for path in shards:
        with SafetensorsFile(path) as file:
            for name in sorted(file.tensors):
                if name in home:
                    raise CheckpointError(f"tensor {name!r} is in both {home[name].name} and {path.name}")
                tensors[name], home[name] = file.tensors[name], path
    _compare_with_index(folder, home)
    return Checkpoint(
        folder=folder,
        config=config,
        generation=_optional(folder / "generation_config.json"),
        tokenizer=tokenizer,
        modules=_modules(folder),
        chat_template=_chat_template(folder, tokenizer),
        shards=shards,
        tensors=tensors,
        home=home,
        remote_code=remote_code,
    )


def refuse_remote_code(checkpoint: Checkpoint) -> None:
    """Raise `UnsafeError` when the checkpoint asks for its own Python; call before any other tool sees the folder."""
    if checkpoint.remote_code:
        raise UnsafeError(
            f"{checkpoint.folder} needs Python code that it brings itself ({', '.join(checkpoint.remote_code)}), "
            "and Lathe never runs a model's code",
            hint="look for a version of the model for an architecture that transformers knows natively",
        )


def read_json(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Read a JSON object from a file of at most `limit` bytes."""
    value = decode_json(read_bytes(path, limit), Any, path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return value


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a file of at most `limit` bytes."""
    try:
        if (size := path.stat().st_size) > limit:
            raise CheckpointError(f"{path} is {size:,} bytes long; the limit for this file is {limit:,}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputMissing(f"{path} does not exist") from error


def decode_json(data: bytes | msgspec.Raw, kind: Any, path: Path) -> Any:
    """Decode a document, or a part of one, as `kind`; raise `CheckpointError` when it is something else."""
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError as error:
        raise CheckpointError(f"{path} nests too deeply") from error
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path} is not laid out as expected: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is no valid JSON: {error}") from error


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _modules(folder: Path) -> list[dict[str, Any]]:
    path = folder / "modules.json"
    modules = decode_json(read_bytes(path, MAX_CONFIG_BYTES), Any, path) if path.is_file() else []
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{path} must hold a list of modules")
    return modules


def plain_name(name: Any, owner: Path) -> str:
    """Return `name` if it is a bare file name; a document must not lead out of its folder."""
    if not isinstance(name, str) or not name or name in (".", "..") or any(mark in name for mark in "/\\\0:"):
        raise UnsafeError(f"{owner} names the file {str(name)[:120]!r}, which is not a plain name inside its folder")
    return name


def _refuse_pickle_file(path: Path) -> None:
    if path.is_file() and path.suffix in PICKLES:
        raise pickled(path.parent, [path.name])


def pickled(folder: Path, names: list[str]) -> UnsafeError:
    """Make the error for weights that are there only as pickles."""
    return UnsafeError(
        f"{folder} has its weights only as pickles ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}); "
        "a pickle can run any code when it is opened, so Lathe does not open it",
        hint="get the safetensors version of the model, or convert it in a disposable sandbox and bring the result",
    )


def _refuse_hostile(document: dict[str, Any], path: Path) -> None:
    """Refuse the exploit fields at any depth (transformers reads nested configs too)."""
    pending: list[Any] = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            for field in _HOSTILE_FIELDS:
                if value.get(field) is not None:
                    raise UnsafeError(f"{path} sets {field}, a field known from code-execution attacks")
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _shards(folder: Path) -> tuple[Path, ...]:
    """List the weight files in order; all named ones exist."""
    index = folder / _INDEX
    if index.is_file():
        names = sorted({plain_name(name, index) for name in _weight_map(index).values()})
    else:
        present = sorted(path.name for path in folder.iterdir() if path.name.startswith("model"))
        names = [name for name in present if name.endswith(".safetensors")]
        if numbered := [match for name in names if (match := _NUMBERED.fullmatch(name))]:
            total = int(numbered[0][2])
            names = [
                f"model-{number:05d}-of-{total:05d}.safetensors" for number in range(1, min(total, MAX_SHARDS) + 1)
            ]
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"{folder} names {len(names):,} shards; the limit is {MAX_SHARDS:,}")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{len(missing)} of {len(names)} weight files are missing in {folder}: {', '.join(missing[:5])}",
            hint="finish the download",
        )
    if not names:
        if pickles := sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES):
            raise pickled(folder, pickles)
        raise InputMissing(f"{folder} has no model*.safetensors")
    return tuple(folder / name for name in names)


def _weight_map(index: Path) -> dict[str, Any]:
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise CheckpointError(f"{index} has no weight_map")
    return mapping


def _compare_with_index(folder: Path, home: dict[str, Path]) -> None:
    index = folder / _INDEX
    if not index.is_file():
        return
    mapping = _weight_map(index)
    for name, shard in mapping.items():
        if name not in home or home[name].name != shard:
            raise CheckpointError(f"{index.name} promises tensor {name!r} in {shard}, which does not hold it")
    if extra := sorted(home.keys() - mapping.keys()):
        raise CheckpointError(f"{home[extra[0]].name} holds tensor {extra[0]!r}, which {index.name} does not list")


def _chat_template(folder: Path, tokenizer: dict[str, Any]) -> str | list[dict[str, str]] | None:
    """Find the chat template; a chat_template.jinja wins over tokenizer_config.json, as in transformers."""
    path = folder / "chat_template.jinja"
    if not path.is_file():
        named = _optional(folder / "chat_template.json").get("chat_template")
        template = tokenizer.get("chat_template", named)
    else:
        template = _template_text(path)
        extras = folder / "additional_chat_templates"
        if extras.is_dir() and (others := sorted(extras.glob("*.jinja"))[:32]):
            template = [{"name": "default", "template": template}]
            template += [{"name": other.stem, "template": _template_text(other)} for other in others]
    with contextlib.suppress(msgspec.ValidationError):
        return msgspec.convert(template, str | list[dict[str, str]] | None)
    raise CheckpointError(f"{folder} has a chat template that is neither text nor a list of named texts")


def _template_text(path: Path) -> str:
    if path.stat().st_size > MAX_TEMPLATE_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_TEMPLATE_BYTES:,} bytes, the limit for a chat template")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text") from error
