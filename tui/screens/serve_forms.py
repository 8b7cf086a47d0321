"""The forms of the Serve place: where to listen, and what a new key may do. Values in, values out."""

from __future__ import annotations

from lathe.engine.states import ServerOptions
from lathe.engine.workbench import ApiKey
from lathe.store.keys import DEFAULT_SCOPES
from lathe.tui.screens.forms import Field, Form, number

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SCOPE_SETS = {"use models, see figures": (), "use models": ("infer",), "see figures": ("observe",),
               "everything": ("infer", "observe", "admin")}  # fmt: skip
"""Words of the form -> scopes; none: the default."""


def start_form(wanted: ServerOptions) -> Form:
    """Ask where and for whom to serve."""
    return Form(
        "Start the HTTP API",
        (
            Field("host", "address", wanted.host, hint="127.0.0.1: this machine only"),
            Field("port", "port", str(wanted.port), hint="0 picks a free one", check=number(0, 65535, whole=True)),
            Field("models", "models", "", hint="names, separated by blanks; empty: all, loaded on demand"),
            Field("access", "token", "required", ("required", "none"), "none is honoured on this machine only"),
            Field("remote", "other machines", "no", ("no", "yes"), "yes is needed to bind anything but loopback"),
            Field("origins", "web pages", "", hint="origins that may ask, such as https://app.lan; empty: none"),
            Field("certificate", "TLS certificate", "", hint="path; empty: plain HTTP"),
            Field("key", "TLS key", "", hint="path"),
        ),
        yes="Start",
        check=start_check,
        watch=lambda values: f"{'https' if values['certificate'] else 'http'}://{values['host']}:{values['port']}/v1",
    )


def start_check(values: dict[str, str]) -> str:
    """What is wrong with the answers; empty: nothing."""
    local = values["host"] in LOOPBACK
    if not values["host"].strip():
        return "give an address"
    if not local and values["remote"] != "yes":
        return "this address is not loopback: allow other machines, or use 127.0.0.1"
    if not local and values["access"] == "none":
        return "without a token only this machine may ask"
    if "*" in values["origins"]:
        return "name the web pages' origins: * would let in every page that you open"
    if bool(values["certificate"]) != bool(values["key"]):
        return "TLS needs the certificate and the key"
    return ""


def server_options(values: dict[str, str]) -> ServerOptions:
    """The answers as options."""
    return ServerOptions(
        host=values["host"],
        port=int(values["port"]),
        models=tuple(values["models"].split()),
        require_token=values["access"] == "required",
        allow_remote=values["remote"] == "yes",
        cors_origins=tuple(values["origins"].split()),
        tls_certificate=values["certificate"] or None,
        tls_key=values["key"] or None,
    )


def start_command(options: ServerOptions) -> str:
    """The shell's way to do the same."""
    words = ["lathe serve", *options.models, f"--host {options.host} --port {options.port}"]
    words += [] if options.require_token else ["--no-token"]
    words += ["--allow-remote"] if options.allow_remote else []
    words += [f"--cors-origin {origin}" for origin in options.cors_origins]
    if options.tls_certificate:
        words.append(f"--tls-certificate {options.tls_certificate} --tls-key {options.tls_key}")
    return " ".join([*words, "--detach"])


def key_form() -> Form:
    """Ask for whom a key is and what it may do."""
    return Form(
        "New API key",
        (
            Field("name", "name", "", hint="who will use it", check=lambda t: "" if t.strip() else "give it a name"),
            Field("may", "may", next(iter(_SCOPE_SETS)), tuple(_SCOPE_SETS)),
            Field("models", "models", "", hint="names, separated by blanks; empty: all"),
            Field("requests", "requests a minute", "", hint="empty: no limit",
                  check=number(1, 1e9, whole=True, optional=True)),
            Field("tokens", "tokens a minute", "", hint="empty: no limit",
                  check=number(1, 1e12, whole=True, optional=True)),
        ),
        yes="Make",
        intro="Everything: also unload models and set adapters.",
    )  # fmt: skip


def new_key(values: dict[str, str]) -> ApiKey:
    """The answers as a key to make."""
    return ApiKey(
        name=values["name"].strip(),
        created_at=0.0,
        scopes=_SCOPE_SETS[values["may"]],
        models=tuple(values["models"].split()),
        requests_per_minute=int(values["requests"]) if values["requests"] else None,
        tokens_per_minute=int(values["tokens"]) if values["tokens"] else None,
    )


def key_command(key: ApiKey) -> str:
    """The shell's way to make it."""
    words = [f"lathe keys make {key.name}"]
    words += [f"--scope {scope}" for scope in key.scopes]
    words += [f"--model {name}" for name in key.models]
    words += [f"--requests-per-minute {key.requests_per_minute}"] if key.requests_per_minute else []
    words += [f"--tokens-per-minute {key.tokens_per_minute}"] if key.tokens_per_minute else []
    return " ".join(words)


def secret_text(key: ApiKey, base: str) -> str:
    """A new key with how to use it: what `y` copies can be pasted into a shell."""
    may = " ".join(key.scopes or DEFAULT_SCOPES)
    return "\n".join(
        [
            f"export LATHE_API_KEY={key.secret}",
            "",
            f"# may: {may}",
            f'curl {base}/v1/models -H "Authorization: Bearer $LATHE_API_KEY"',
            f"OPENAI_BASE_URL={base}/v1 OPENAI_API_KEY=$LATHE_API_KEY  your-program",
            f"ANTHROPIC_BASE_URL={base} ANTHROPIC_API_KEY=$LATHE_API_KEY  your-program",
        ]
    )
