"""Serve: the HTTP API: who may come in, what is in memory, what runs at this moment, what was asked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from lathe.engine.states import RequestRow, ServerOptions, ServerState
from lathe.engine.workbench import ApiKey
from lathe.tui import formats
from lathe.tui.board import Board
from lathe.tui.screens import serve_forms as forms
from lathe.tui.screens.base import PlaceScreen
from lathe.tui.screens.dialogs import Confirm
from lathe.tui.screens.reading import Choice, Choose, Facts, Reading
from lathe.tui.views import rows
from lathe.tui.views import serve as view
from lathe.tui.widgets.base import Canvas, Painter, Panel
from lathe.tui.widgets.grid import Grid
from lathe.tui.widgets.paint import Line
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widget import Widget

PAGES = ("requests", "keys and endpoints", "log")
"""What a short terminal shows below the state, one after another."""


class Serve(PlaceScreen):
    """The API."""

    MODE = "serve"
    SHOWS_LOG = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "start", "start", id="serve.start", tooltip="Start the HTTP API"),
        Binding("S", "stop_serving", "stop", id="serve.stop", tooltip="Stop accepting, finish what runs, close"),
        Binding("v", "page", "view", id="serve.page", tooltip="Requests, then keys and endpoints, then the log"),
        Binding("x", "cancel", "cancel request", id="serve.cancel", tooltip="Stop the request under the cursor"),
        Binding("n", "new_key", "new key", id="serve.key", tooltip="Make an API key; its secret is shown once"),
        Binding(
            "D",
            "revoke",
            "revoke",
            id="serve.revoke",
            tooltip="Revoke the key under the cursor; it stops working at once",
        ),
        Binding(
            "c", "curl", "copy curl", id="serve.curl", tooltip="Copy an example call of the endpoint under the cursor"
        ),
        Binding(
            "u",
            "unload",
            "unload",
            show=False,
            id="serve.unload",
            tooltip="Take the model under the cursor out of memory",
        ),
        Binding("y", "copy", "copy URL", id="serve.copy", tooltip="Copy the base URL, or the id under the cursor"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._keys: list[ApiKey] | None = None
        self._speeds = view.Speeds()
        self._page = 0

    def content(self) -> ComposeResult:
        with Horizontal(id="head"):
            with Panel(title="HTTP API", id="server"):
                yield _Area(self._state)
            with Panel(title="Speed", id="speed"):
                yield _Area(lambda width, height: view.speed_lines(self.board, width, height, self.lathe.glyphs))
        with Panel(title="Models in memory", id="models", classes="-bare"):
            yield Grid(view.MODEL_COLUMNS, empty="None: the first request for a model loads it.", id="model-list")
        with Panel(title="Requests", id="requests", classes="-bare"):
            yield Grid(rows.SERVED, empty="No requests.", newest=True, id="request-list")
        with Horizontal(id="middle"):
            with Panel(title="API keys", id="keys", classes="-bare"):
                yield Grid(view.KEY_COLUMNS, empty=self._no_keys, id="key-list")
            with Panel(title="Endpoints", id="endpoints", classes="-bare"):
                yield Grid(view.ENDPOINT_COLUMNS, id="endpoint-list")
        with Panel(title="Log", id="http-log"):
            yield _Area(lambda width, height: view.log_lines(self.board.log, width, height, self.lathe.glyphs))

    def _no_keys(self) -> str:
        return "No keys yet.\nn  makes one" if self._keys is not None else "Reading the keys..."

    def on_screen_resume(self) -> None:
        """Read the keys when the place opens: nobody announces their change."""
        self._turn_to(self._page)
        self._read_keys()

    def show(self, board: Board) -> None:
        for area in self.query(_Area):
            area.redraw()
        self.query_one("#endpoint-list", Grid).show(view.endpoint_rows())
        if board.snapshot is not None:
            self._speeds.take(board.snapshot)
            now, glyphs = self.lathe.now(), self.lathe.glyphs
            requests = board.snapshot.traffic.requests
            self.query_one("#model-list", Grid).show(view.model_rows(board.snapshot, self._speeds, now, glyphs))
            self.query_one("#request-list", Grid).show(rows.request_rows(requests, glyphs))
            self._title(requests)
            self._show_keys()
        if self._keys is None and board.attached and board.lost is None:
            self._keys = []
            self._read_keys()

    def _title(self, requests: tuple[RequestRow, ...]) -> None:
        live = [row for row in requests if not row.finished]
        stages = {stage: sum(row.stage == stage for row in live) for stage in ("waiting", "prefill", "decode")}
        words = [f"{count} {stage}" for stage, count in stages.items() if count]
        self.query_one("#requests", Panel).entitle("Requests", f"{len(live)} live", *words)
        workers = self.board.snapshot.workers if self.board.snapshot else ()
        notices = [f"{worker.name}: {worker.notice}" for worker in workers if worker.notice]
        self.query_one("#models", Panel).footnote(*notices[:1])

    def _state(self, width: int, height: int) -> list[Line]:
        snapshot = self.board.snapshot
        if snapshot is None:
            return []
        keys = len(self._keys) if self._keys is not None else None
        return view.server_lines(snapshot, keys, self.lathe.now(), self._wanted(), width, height, self.lathe.glyphs)

    def _wanted(self) -> ServerOptions:
        """Options as the settings have them."""
        host, port = self.board.setting("serving.host"), self.board.setting("serving.port")
        return ServerOptions(
            host=str(host.value) if host else ServerOptions().host,
            port=int(port.value) if port and isinstance(port.value, int) else ServerOptions().port,
        )

    def _server(self) -> ServerState:
        return self.board.snapshot.server if self.board.snapshot else ServerState(running=False)

    def _read_keys(self) -> None:
        if self.board.attached and self.board.lost is None:
            self.lathe.do(lambda bench: bench.keys(), self._got_keys, group="keys")

    def _got_keys(self, keys: list[ApiKey]) -> None:
        self._keys = keys
        self._show_keys()
        self.query_one("#server _Area", _Area).redraw()

    def _show_keys(self) -> None:
        keys = self._keys or []
        self.query_one("#key-list", Grid).show(view.key_rows(keys, self._server(), self.lathe.now()))
        self.query_one("#keys", Panel).entitle("API keys", str(len(keys)))

    # -- pages ------------------------------------------------------------------------------------------------------
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "page":
            return self.has_class("-short")
        return super().check_action(action, parameters)

    def action_page(self) -> None:
        """The next page of a short terminal."""
        self._turn_to((self._page + 1) % len(PAGES))
        lists = {0: "#request-list", 1: "#key-list"}
        if self._page in lists:
            self.query_one(lists[self._page], Grid).focus()

    def _turn_to(self, page: int) -> None:
        self._page = page
        for number in range(len(PAGES)):
            self.set_class(number == page, f"-page-{number}")
        following = f"v: {PAGES[(page + 1) % len(PAGES)]}"
        for name in ("#requests", "#keys", "#http-log"):
            self.query_one(name, Panel).footnote(following if self.has_class("-short") else "")

    def on_resize(self) -> None:
        """Pages exist on short terminals only."""
        self.call_after_refresh(self._turn_to, self._page)

    # -- actions ----------------------------------------------------------------------------------------------------
    def changing(self) -> Iterable[str]:
        return ("start", "stop_serving", "new_key", "revoke", "cancel", "unload")

    def action_start(self) -> None:
        """Ask where and for whom, then start."""
        server = self._server()
        if self.board.snapshot is None:
            return
        if server.running:
            self.lathe.notify(f"Serving at {server.url} already; S stops it.", severity="warning")
            return

        def take(values: dict[str, str] | None) -> None:
            if values is not None:
                options = forms.server_options(values)
                self.lathe.do(
                    lambda bench: bench.start_server(options),
                    self._started,
                    command=forms.start_command(options),
                    what="HTTP API",
                )

        self.app.push_screen(forms.start_form(self._wanted()), take)

    def _started(self, server: ServerState) -> None:
        """Say so; where nobody could come in, make the first key at once."""
        if server.options.require_token and not self._keys:
            self._make(ApiKey(name="default", created_at=0.0))
            return
        self.lathe.tell(f"Serving at {server.url}; c copies an example")

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
            who = sorted({row.client.removeprefix("http ") for row in active})
            lines = [
                f"{formats.many(len(active), 'request')} from {', '.join(who)}.",
                "They are finished first; new ones are refused.",
            ]
            self.app.push_screen(Confirm("Stop the HTTP API?", lines, "Stop"), stop)
        else:
            stop()

    def action_curl(self) -> None:
        """Copy a call of an endpoint."""
        self._with_curl(
            lambda endpoint, text, token: self.lathe.copy(
                text, f"curl for {endpoint.path}{' (put the key into LATHE_API_KEY)' if token else ''}"
            )
        )

    def _with_curl(self, use: view.CurlUse) -> None:
        """Make an example call of the endpoint under the cursor; asks which model where there are several."""
        path = self.query_one("#endpoint-list", Grid).cursor
        endpoint = next((e for e in view.ENDPOINTS if e.path == path), view.ENDPOINTS[0])
        server = self._server()
        token = server.options.require_token if server.running else True

        def take(model: str | None) -> None:
            if model:
                use(endpoint, view.curl(endpoint, self._url(), model, token=token), token)

        names = [worker.name for worker in self.board.snapshot.workers] if self.board.snapshot else []
        names += [entry.name for entry in self.board.models if entry.name not in names]
        if not endpoint.body:
            take("-")
        elif len(names) > 1:
            self.app.push_screen(Choose("Which model?", [Choice(name, name) for name in names]), take)
        else:
            take(names[0] if names else "MODEL")

    def _url(self) -> str:
        server, wanted = self._server(), self._wanted()
        return server.url if server.running and server.url else f"http://{wanted.host}:{wanted.port}"

    def action_new_key(self) -> None:
        """Make a key and show its secret once."""

        def take(values: dict[str, str] | None) -> None:
            if values is not None:
                self._make(forms.new_key(values))

        self.app.push_screen(forms.key_form(), take)

    def _make(self, key: ApiKey) -> None:
        self.lathe.do(lambda bench: bench.make_key(key), self._made, command=forms.key_command(key), what=key.name)

    def _made(self, key: ApiKey) -> None:
        self._read_keys()
        facts = "This is the only time the secret is shown. y copies it with the lines below."
        self.app.push_screen(Reading(f"Key {key.name}", forms.secret_text(key, self._url()), facts))

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

        use = next((use for use in self._server().keys if use.name == name), None)
        lines = ["Whoever uses it is refused from now on."]
        if use is not None and use.last_at is not None:
            ago = formats.ago(self.lathe.now() - use.last_at)
            lines.append(f"It asked {use.requests} times since the start, the last time {ago} ago.")
        self.app.push_screen(Confirm(f"Revoke the key {name}?", lines, "Revoke"), take)

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

    def action_unload(self) -> None:
        """Take a model out of memory; ask where requests run on it."""
        worker = self.board.worker(self.query_one("#model-list", Grid).cursor or "")
        if worker is None:
            return
        name, running = worker.name, worker.stats.running + worker.stats.waiting

        def unload(yes: bool | None = True) -> None:
            if yes:
                self.lathe.do(
                    lambda bench: bench.unload(name),
                    lambda _: self.lathe.tell(f"{name} is out of memory"),
                    what=name,
                )

        if running:
            lines = [
                f"{formats.many(running, 'request')} on it are finished first.",
                "The next request loads it again.",
            ]
            self.app.push_screen(Confirm(f"Unload {name}?", lines, "Unload"), unload)
        else:
            unload()

    @on(Grid.Opened)
    def _opened(self, message: Grid.Opened) -> None:
        """Show all about what is under the cursor."""
        message.stop()
        key, snapshot = message.key or "", self.board.snapshot
        if snapshot is None:
            return
        match message.grid.id:
            case "model-list":
                worker = self.board.worker(key)
                if worker is not None:
                    self.app.push_screen(Facts(worker.name, view.model_facts(worker, self.lathe.now())))
            case "request-list":
                row = next((row for row in snapshot.traffic.requests if row.id == key), None)
                if row is not None:
                    self.app.push_screen(Facts(f"Request {row.id}", rows.request_facts(row)))
            case "endpoint-list":
                self._with_curl(lambda endpoint, text, token: self._show_curl(endpoint, text))
            case "key-list":
                found = next((known for known in self._keys or () if known.name == key), None)
                if found is not None:
                    facts = view.key_facts(found, snapshot.server, self.lathe.now())
                    self.app.push_screen(Facts(f"Key {found.name}", facts))

    def _show_curl(self, endpoint: view.Endpoint, text: str) -> None:
        self.app.push_screen(Reading(f"{endpoint.method} {endpoint.path}", text, endpoint.about))

    def copy_text(self) -> tuple[str, str]:
        if isinstance(self.focused, Grid) and self.focused.id in ("key-list", "request-list"):
            return self.focused.cursor or "", "Name"
        return f"{self._url()}/v1", "Base URL"

    def home(self) -> Widget | None:
        return self.query_one("#request-list", Grid)

    def command(self) -> str:
        wanted = self._wanted()
        return f"lathe serve --host {wanted.host} --port {wanted.port} --detach"


class _Area(Canvas):
    """Lines that fill their panel."""

    DEFAULT_CSS = "_Area { height: 1fr; }"

    def __init__(self, painter: Painter) -> None:
        super().__init__(painter)
