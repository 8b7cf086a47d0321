"""Serve: the HTTP API's state, endpoints, keys and live requests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from lathe.engine.states import ServerOptions
from lathe.engine.workbench import ApiKey
from lathe.tui import formats
from lathe.tui.board import Board
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.screens.dialogs import Confirm
from lathe.tui.screens.forms import Field, Form, number
from lathe.tui.screens.reading import Choice, Choose, Reading
from lathe.tui.views import rows
from lathe.tui.views import serve as view
from lathe.tui.widgets.base import Canvas, Panel
from lathe.tui.widgets.grid import Grid
from lathe.tui.widgets.paint import Line
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widget import Widget


class Serve(PlaceScreen):
    """The API."""

    MODE = "serve"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "start", "start", id="serve.start", tooltip="Start the HTTP API"),
        Binding("S", "stop_serving", "stop", id="serve.stop", tooltip="Stop accepting, finish what runs, close"),
        Binding(
            "c", "curl", "copy curl", id="serve.curl", tooltip="Copy an example call of the endpoint under the cursor"
        ),
        Binding("y", "copy", "copy URL", id="serve.copy", tooltip="Copy the base URL, or the id under the cursor"),
        Binding("n", "new_key", "new key", id="serve.key", tooltip="Make an API key; its secret is shown once"),
        Binding(
            "D",
            "revoke",
            "revoke",
            id="serve.revoke",
            tooltip="Revoke the key under the cursor; it stops working at once",
        ),
        Binding("x", "cancel", "cancel request", id="serve.cancel", tooltip="Stop the request under the cursor"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._keys: list[ApiKey] | None = None

    def content(self) -> ComposeResult:
        with Panel(title="HTTP API", id="server"):
            yield _State(self._state)
        with Horizontal(id="middle"):
            with Panel(title="Endpoints", id="endpoints", classes="-bare"):
                yield Grid(view.ENDPOINT_COLUMNS, id="endpoint-list")
            with Panel(title="API keys", id="keys", classes="-bare"):
                yield Grid(view.KEY_COLUMNS, empty=self._no_keys, id="key-list")
        with Panel(title="Requests", id="requests", classes="-bare"):
            yield Grid(rows.REQUESTS, empty="No requests.", id="request-list")

    def _no_keys(self) -> str:
        return "No keys yet.\nn  makes one" if self._keys is not None else "Reading the keys..."

    def on_screen_resume(self) -> None:
        """Read the keys when the place opens: nobody announces their change."""
        self._read_keys()

    def show(self, board: Board) -> None:
        self.query_one(_State).redraw()
        self.query_one("#endpoint-list", Grid).show(view.endpoint_rows())
        if board.snapshot is not None:
            requests = board.snapshot.traffic.requests
            self.query_one("#request-list", Grid).show(rows.request_rows(requests, self.lathe.glyphs))
            live = sum(not row.finished for row in requests)
            self.query_one("#requests", Panel).entitle("Requests", f"{live} live")
        if self._keys is None and board.attached and board.lost is None:
            self._keys = []
            self._read_keys()

    def _state(self, width: int, height: int) -> list[Line]:
        snapshot = self.board.snapshot
        if snapshot is None:
            return []
        return view.server_lines(snapshot, self.lathe.now(), self._wanted(), width, height, self.lathe.glyphs)

    def _wanted(self) -> ServerOptions:
        """Options as the settings have them."""
        host, port = self.board.setting("serving.host"), self.board.setting("serving.port")
        return ServerOptions(
            host=str(host.value) if host else ServerOptions().host,
            port=int(port.value) if port and isinstance(port.value, int) else ServerOptions().port,
        )

    def _read_keys(self) -> None:
        if self.board.attached and self.board.lost is None:
            self.lathe.do(lambda bench: bench.keys(), self._got_keys, group="keys")

    def _got_keys(self, keys: list[ApiKey]) -> None:
        self._keys = keys
        self.query_one("#key-list", Grid).show(view.key_rows(keys))
        self.query_one("#keys", Panel).entitle("API keys", str(len(keys)))

    # -- actions ----------------------------------------------------------------------------------------------------
    def changing(self) -> Iterable[str]:
        return ("start", "stop_serving", "new_key", "revoke", "cancel")

    def action_start(self) -> None:
        """Ask where and for whom, then start."""
        snapshot = self.board.snapshot
        if snapshot is None:
            return
        if snapshot.server.running:
            self.lathe.notify(f"Serving at {snapshot.server.url} already; S stops it.", severity="warning")
            return
        wanted = self._wanted()
        form = Form(
            "Start the HTTP API",
            (
                Field("host", "address", wanted.host, hint="127.0.0.1: this machine only"),
                Field("port", "port", str(wanted.port), hint="0 picks a free one", check=number(0, 65535, whole=True)),
                Field("models", "models", "", hint="names, separated by blanks; empty: all, loaded on demand"),
                Field("access", "token", "required", ("required", "none"), "none is honoured on this machine only"),
                Field("remote", "other machines", "no", ("no", "yes"), "yes is needed to bind anything but loopback"),
            ),
            yes="Start",
            check=_start_check,
            watch=lambda values: f"http://{values['host']}:{values['port']}/v1",
        )

        def take(values: dict[str, str] | None) -> None:
            if values is not None:
                self._start(values)

        self.app.push_screen(form, take)

    def _start(self, values: dict[str, str]) -> None:
        options = ServerOptions(
            host=values["host"],
            port=int(values["port"]),
            models=tuple(values["models"].split()),
            require_token=values["access"] == "required",
            allow_remote=values["remote"] == "yes",
        )
        flags = ["lathe serve", *options.models, f"--host {options.host} --port {options.port} --detach"]
        flags += [] if options.require_token else ["--no-token"]
        flags += ["--allow-remote"] if options.allow_remote else []
        self.lathe.do(
            lambda bench: bench.start_server(options),
            lambda server: self.lathe.tell(f"Serving at {server.url}; c copies an example"),
            command=" ".join(flags),
            what="HTTP API",
        )

    def action_stop_serving(self) -> None:
        """Stop; ask where somebody would notice."""
        snapshot = self.board.snapshot
        if snapshot is None or not snapshot.server.running:
            return
        active = [row for row in snapshot.traffic.requests if not row.finished and row.client.startswith("http")]

        def stop(yes: bool | None = True) -> None:
            if yes:
                self.lathe.do(
                    lambda bench: bench.stop_server(),
                    lambda _: self.lathe.tell("The HTTP API is closed; s starts it again"),
                    command="lathe serve --stop",
                    what="HTTP API",
                )

        if active:
            who = sorted({row.client for row in active})
            lines = [
                f"{formats.many(len(active), 'request')} from {', '.join(who)}.",
                "They are finished first; new ones are refused.",
            ]
            self.app.push_screen(Confirm("Stop the HTTP API?", lines, "Stop"), stop)
        else:
            stop()

    def action_curl(self) -> None:
        """Copy a call of an endpoint."""
        endpoint = next(
            (e for e in view.ENDPOINTS if e.path == self.query_one("#endpoint-list", Grid).cursor), view.ENDPOINTS[0]
        )
        url, server = self._url(), self.board.snapshot.server if self.board.snapshot else None
        token = server.options.require_token if server is not None and server.running else True

        def copy(model: str | None) -> None:
            if model:
                text = view.curl(endpoint, url, model, token=token)
                self.lathe.copy(
                    text,
                    f"curl for {endpoint.path} (put the key into LATHE_API_KEY)"
                    if token
                    else f"curl for {endpoint.path}",
                )

        names = [worker.name for worker in self.board.snapshot.workers] if self.board.snapshot else []
        names += [entry.name for entry in self.board.models if entry.name not in names]
        if not endpoint.body:
            copy("-")
        elif len(names) > 1:
            self.app.push_screen(Choose("Which model?", [Choice(name, name) for name in names]), copy)
        else:
            copy(names[0] if names else "MODEL")

    def _url(self) -> str:
        server = self.board.snapshot.server if self.board.snapshot else None
        wanted = self._wanted()
        return (
            server.url
            if server is not None and server.running and server.url
            else f"http://{wanted.host}:{wanted.port}"
        )

    def action_new_key(self) -> None:
        """Make a key and show its secret once."""
        form = Form(
            "New API key",
            (
                Field(
                    "name", "name", "", hint="who will use it", check=lambda t: "" if t.strip() else "give it a name"
                ),
                Field("models", "models", "", hint="names, separated by blanks; empty: all"),
                Field(
                    "requests",
                    "requests a minute",
                    "",
                    hint="empty: no limit",
                    check=number(1, 1e9, whole=True, optional=True),
                ),
                Field(
                    "tokens",
                    "tokens a minute",
                    "",
                    hint="empty: no limit",
                    check=number(1, 1e12, whole=True, optional=True),
                ),
            ),
            yes="Make",
        )

        def take(values: dict[str, str] | None) -> None:
            if values is None:
                return
            key = ApiKey(
                name=values["name"].strip(),
                created_at=0.0,
                models=tuple(values["models"].split()),
                requests_per_minute=int(values["requests"]) if values["requests"] else None,
                tokens_per_minute=int(values["tokens"]) if values["tokens"] else None,
            )
            self.lathe.do(
                lambda bench: bench.make_key(key), self._made, command=f"lathe keys make {key.name}", what=key.name
            )

        self.app.push_screen(form, take)

    def _made(self, key: ApiKey) -> None:
        self._read_keys()
        facts = "This is the only time the secret is shown. y copies it."
        self.app.push_screen(Reading(f"Key {key.name}", key.secret or "", facts))

    def action_revoke(self) -> None:
        """Forget a key, after asking."""
        name = self.query_one("#key-list", Grid).cursor
        if name is None:
            return

        def take(yes: bool | None) -> None:
            if yes:
                self.lathe.do(
                    lambda bench: bench.revoke_key(name),
                    lambda _: self._revoked(name),
                    command=f"lathe keys revoke {name}",
                    what=name,
                )

        self.app.push_screen(
            Confirm(f"Revoke the key {name}?", ["Whoever uses it is refused from now on."], "Revoke"), take
        )

    def _revoked(self, name: str) -> None:
        self.lathe.tell(f"{name} is revoked")
        self._read_keys()

    def action_cancel(self) -> None:
        """Stop a request."""
        key = self.query_one("#request-list", Grid).cursor
        if key is not None:
            self.lathe.do(
                lambda bench: bench.cancel_request(key), lambda _: self.lathe.tell(f"{key} is being stopped"), what=key
            )

    def copy_text(self) -> tuple[str, str]:
        if isinstance(self.focused, Grid) and self.focused.id in ("key-list", "request-list"):
            return self.focused.cursor or "", "Name"
        return f"{self._url()}/v1", "Base URL"

    def home(self) -> Widget | None:
        return self.query_one("#endpoint-list", Grid)

    def command(self) -> str:
        wanted = self._wanted()
        return f"lathe serve --host {wanted.host} --port {wanted.port} --detach"


class _State(Canvas):
    """The state in its panel."""

    DEFAULT_CSS = "_State { height: 1fr; }"


def _start_check(values: dict[str, str]) -> str:
    local = values["host"] in ("127.0.0.1", "localhost", "::1")
    if not values["host"].strip():
        return "give an address"
    if not local and values["remote"] != "yes":
        return "this address is not loopback: allow other machines, or use 127.0.0.1"
    if not local and values["access"] == "none":
        return "without a token only this machine may ask"
    return ""
