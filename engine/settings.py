"""Settings: typed keys with their documentation, merged from six sources with provenance.

    default < system file < user file < project file (./lathe.toml) < environment (LATHE_SECTION_KEY) < flag

The dataclasses below are the reference: field, type, default, docstring (the README's table is generated from them).
Invariant: an unknown key or a value of the wrong type or out of range is a `ConfigError` with file and line; nothing is
guessed.
"""

from __future__ import annotations

import ast
import inspect
import os
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from lathe.engine.errors import CannotCreate, ConfigError

Scalar = str | int | float | bool | None
Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Interval = Annotated[float, msgspec.Meta(ge=0.1)]
Layers = Annotated[int, msgspec.Meta(ge=-2)]


class General(msgspec.Struct, frozen=True):
    offline: bool = True
    """Never open a connection that leaves this machine."""
    refresh_s: Interval = 1.0
    """Seconds between two samples of the machine."""
    engine_idle_exit_s: Seconds = 1800.0
    """The engine process ends after this long without fronts, jobs, loaded models or server; 0: never."""
    log_max_mb: Positive = 64
    """Size at which the engine's log is rotated; one old file is kept."""
    jobs_cpu: Positive = 1
    """Jobs that may run at once on the CPU."""


class Serving(msgspec.Struct, frozen=True):
    host: str = "127.0.0.1"
    """Address of the HTTP API; anything but loopback needs `--allow-remote` and a token."""
    port: Port = 8321
    """Port of the HTTP API."""
    slots: Positive = 4
    """Sequences that may run at once in one model."""
    context: Natural = 0
    """Tokens per sequence; 0: the model's own, capped by memory."""
    kv_type: Literal["f16", "q8_0", "q4_0"] = "f16"
    """Type of the KV cache."""
    threads: Natural = 0
    """Threads of a model worker; 0: the physical cores."""
    gpu_layers: Layers = -2
    """Layers on the GPU; -2: as many as fit, -1: all, 0: none."""
    idle_unload_s: Seconds = 900.0
    """Unload a model after this long without a request; 0: never."""
    memory_reserve_mb: Natural = 512
    """Memory kept free per device when a load is admitted."""
    prefix_cache: bool = True
    """Share computed prefixes among requests of the same key."""


class Appearance(msgspec.Struct, frozen=True):
    theme: str = "lathe-dark"
    """Theme of the TUI."""
    glyphs: Literal["auto", "unicode", "blocks", "ascii"] = "auto"
    """Characters for graphs and borders."""
    animations: bool = False
    """Animate transitions."""
    show_cursor: bool = False
    """Leave the terminal's cursor at the focus, for screen readers."""


class Privacy(msgspec.Struct, frozen=True):
    log_content: bool = False
    """Log what clients of the HTTP API send and get, masked, for a week; read when the server starts."""


class Settings(msgspec.Struct, frozen=True):
    """Every setting, with its default."""

    general: General = General()
    serving: Serving = Serving()
    appearance: Appearance = Appearance()
    privacy: Privacy = Privacy()


class Origin(msgspec.Struct, frozen=True):
    """Where a value comes from."""

    kind: Literal["default", "system", "user", "project", "env", "flag"] = "default"
    where: str = ""
    """`FILE:LINE`, the variable's name or the flag."""

    def __str__(self) -> str:
        return f"{self.kind} {self.where}".strip()


class Loaded(msgspec.Struct, frozen=True):
    """Merged settings with the origin of each key that is not a default."""

    settings: Settings
    origins: dict[str, Origin] = {}

    def value(self, key: str) -> Scalar:
        """The effective value of `section.name`."""
        section, _, name = _known(key).partition(".")
        value: Scalar = getattr(getattr(self.settings, section), name)
        return value

    def origin(self, key: str) -> Origin:
        """Where the effective value comes from."""
        return self.origins.get(key, Origin())


def names() -> Iterator[str]:
    """Every key, in the order of the reference."""
    for section, kind in get_type_hints(Settings).items():
        for name in get_type_hints(kind):
            yield f"{section}.{name}"


def default(key: str) -> Scalar:
    """The default of a key."""
    section, _, name = _known(key).partition(".")
    value: Scalar = getattr(getattr(Settings(), section), name)
    return value


def kind(key: str) -> str:
    """`bool`, `int`, `float`, `str`, or the choices joined by `|`."""
    hint = _plain(_hint(key))
    return "|".join(get_args(hint)) if get_origin(hint) is Literal else hint.__name__


@cache
def docs() -> dict[str, str]:
    """Key -> its documentation, read from the source of the classes above."""
    found: dict[str, str] = {}
    sections = {kind.__name__: section for section, kind in get_type_hints(Settings).items()}
    for node in ast.parse(inspect.getsource(inspect.getmodule(Settings))).body:  # type: ignore[arg-type]
        if not isinstance(node, ast.ClassDef) or node.name not in sections:
            continue
        for field, text in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[f"{sections[node.name]}.{ast.unparse(field.target)}"] = str(text.value.value)
    return found


def parse(key: str, text: str, where: str = "") -> Scalar:
    """Turn the text of a variable, a flag or a form field into the key's type.

    Raises:
        ConfigError: naming the key, the text and what is expected.
    """
    hint = _hint(_known(key, where))
    if hint is bool and text.lower() in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        return text.lower() in ("1", "true", "yes", "on")
    try:
        value: Scalar = msgspec.convert(text, hint, strict=False)
    except msgspec.ValidationError:
        raise ConfigError(_prefix(where) + f"{key}: {text!r} is not {_expected(key)}") from None
    return value


def load(
    *,
    system: Path | None = None,
    user: Path | None = None,
    project: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> Loaded:
    """Merge all sources, later ones over earlier ones.

    Raises:
        ConfigError: a file is not TOML, a key is unknown or a value has the wrong type or range.
    """
    values: dict[str, Scalar] = {}
    origins: dict[str, Origin] = {}
    files: tuple[tuple[Literal["system", "user", "project"], Path | None], ...] = (
        ("system", system),
        ("user", user),
        ("project", project),
    )
    for source, path in files:
        for key, value, line in _read_file(path):
            values[key], origins[key] = value, Origin(source, f"{path}:{line}")
    for name, key in _variables(environment or {}):
        values[key], origins[key] = parse(key, (environment or {})[name], name), Origin("env", name)
    for key, text in (flags or {}).items():
        values[key], origins[key] = parse(key, text, "flag"), Origin("flag", f"--set {key}")
    tree: dict[str, dict[str, Scalar]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    return Loaded(msgspec.convert(tree, Settings), origins)


def write(path: Path, key: str, value: Scalar) -> None:
    """Set one key in a TOML file, or remove it with None; comments and order are kept, the file stays 0600.

    Raises:
        CannotCreate: the file cannot be written. ConfigError: it is not TOML now.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    section, _, name = _known(key).partition(".")
    try:
        document = tomlkit.parse(path.read_text("utf-8")) if path.exists() else tomlkit.document()
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}", hint="mend it with an editor first") from error
    if section not in document:
        document[section] = tomlkit.table()
    table = document[section]
    assert isinstance(table, dict)
    if value is None:
        table.pop(name, None)
    else:
        table[name] = value
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.touch(mode=0o600)
        part.write_text(tomlkit.dumps(document), "utf-8")
        part.replace(path)
    except OSError as error:
        raise CannotCreate(f"cannot write {path}: {error.strerror or error}") from error


def system_file() -> Path:
    """The machine's settings, written by its administrator."""
    return Path("/etc/lathe/config.toml")


def user_file() -> Path:
    """The user's settings."""
    import platformdirs

    return Path(
        os.environ.get("LATHE_CONFIG") or Path(platformdirs.user_config_dir("lathe", appauthor=False), "config.toml")
    )


def project_file() -> Path | None:
    """`lathe.toml` in the current folder, where there is one."""
    path = Path.cwd() / "lathe.toml"
    return path if path.is_file() else None


def load_here(flags: Mapping[str, str] | None = None) -> Loaded:
    """Merge the sources of this process."""
    explicit = os.environ.get("LATHE_CONFIG")
    if explicit and not Path(explicit).is_file():
        raise ConfigError(f"{explicit}: no such file", hint="LATHE_CONFIG names it; unset it or create the file")
    return load(system=system_file(), user=user_file(), project=project_file(), environment=os.environ, flags=flags)


def _hint(key: str) -> Any:
    """The type of a key, with its range."""
    section, _, name = key.partition(".")
    return get_type_hints(get_type_hints(Settings)[section], include_extras=True)[name]


def _plain(hint: Any) -> Any:
    """A type without its range."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _known(key: str, where: str = "") -> str:
    if key in names():
        return key
    near = get_close_matches(key, list(names()), n=1)
    raise ConfigError(_prefix(where) + f"unknown setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _prefix(where: str) -> str:
    return f"{where}: " if where else ""


def _expected(key: str) -> str:
    words = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}
    expected = words.get(kind(key), "one of " + kind(key).replace("|", ", "))
    hint = _hint(key)
    if get_origin(hint) is not Annotated:
        return expected
    least, most = get_args(hint)[1].ge, get_args(hint)[1].le
    return f"{expected} from {least} to {most}" if most is not None else f"{expected} of at least {least}"


_RESERVED = {"LATHE_HOME", "LATHE_CONFIG"}


def _variables(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Variables of the form LATHE_SECTION_KEY; others that start with LATHE_ belong to someone else."""
    by_name = {"LATHE_" + key.replace(".", "_").upper(): key for key in names()}
    sections = tuple(f"LATHE_{section.upper()}_" for section in get_type_hints(Settings))
    for name in environment:
        if name in by_name:
            yield name, by_name[name]
        elif name == "LATHE_OFFLINE":
            yield name, "general.offline"
        elif name not in _RESERVED and name.startswith(sections):
            near = get_close_matches(name, list(by_name), n=1)
            hint = f"did you mean {near[0]}?" if near else ""
            raise ConfigError(f"environment: unknown setting {name}", hint=hint)


def _read_file(path: Path | None) -> Iterator[tuple[str, Scalar, int]]:
    """(key, value, line) of every setting in a TOML file; nothing where there is no file."""
    if path is None:
        return
    try:
        if not path.is_file():
            return
        text = path.read_text("utf-8")
        tree = tomllib.loads(text)
    except PermissionError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    for section, table in tree.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{path}:{_line(text, '', section)}: {section!r} must stand in a [section]")
        for name, value in table.items():
            line = _line(text, section, name)
            key = _known(f"{section}.{name}", f"{path}:{line}")
            try:
                yield key, msgspec.convert(value, _hint(key)), line
            except msgspec.ValidationError:
                raise ConfigError(f"{path}:{line}: {key}: {value!r} is not {_expected(key)}") from None


def _line(text: str, section: str, name: str) -> int:
    """Line on which `name` is set within `[section]`; 1 where it cannot be told."""
    inside = not section
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            inside = stripped.strip("[] ") == section
        elif inside and stripped.split("=", 1)[0].strip().strip("\"'") == name:
            return number
    return 1
