"""`HttpServer`: binds, accepts, drains. The engine runs it beside everything else, on its own event loop.

uvicorn parses and speaks HTTP; its `Server` is not used, because it takes over signals, logging and the exit of the
process, and wakes ten times a second. Invariant: `start` either returns a listening server or leaves nothing behind,
and after `stop` no task, socket or file of it remains.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import ssl
import stat
import time
from collections.abc import Callable
from pathlib import Path

from lathe.engine.errors import BusyError, CannotCreate, ConfigError, describe
from lathe.engine.events import Event, ServerChanged
from lathe.engine.http.access import Keys, check_options, resolve
from lathe.engine.http.body_log import BodyLog
from lathe.engine.http.call import Service
from lathe.engine.http.catalogue import Catalogue
from lathe.engine.http.gateway import Gateway
from lathe.engine.http.limits import Limits
from lathe.engine.http.metrics import Metrics
from lathe.engine.http.protocol import Connections, GuardedProtocol
from lathe.engine.http.request_log import RequestLog
from lathe.engine.http.routes import TABLE
from lathe.engine.states import ServerOptions, ServerState
from lathe.engine.workbench import Workbench
from lathe.engine.worker.messages import LoadOptions
from uvicorn.config import Config
from uvicorn.server import ServerState as UvicornState

BACKLOG = 2048
_HANDSHAKE_S = 10.0


class HttpServer:
    """The HTTP API; at most one runs per engine."""

    def __init__(
        self, workbench: Workbench, keys: Keys, publish: Callable[[Event], None], limits: Limits | None = None,
        bodies: Callable[[], Path | None] = lambda: None,
    ) -> None:  # fmt: skip
        self._workbench = workbench
        self._keys = keys
        self._publish = publish
        self._bodies_at = bodies
        """Where bodies are logged, asked at every start; None: nowhere."""
        self._limits = limits or Limits()
        self._log = RequestLog(publish)
        self._running: _Running | None = None
        self._starting = False
        self._stopping: asyncio.Task[ServerState] | None = None
        self._last = ServerState(running=False)

    @property
    def state(self) -> ServerState:
        """How it runs, with its counts as of now."""
        running = self._running
        if running is None:
            return self._last
        counts = running.gateway.counts
        return ServerState(
            running=not running.gateway.draining,
            url=running.url,
            options=running.options,
            started_at=running.started_at,
            requests_total=counts.total,
            requests_active=counts.active,
            rejected_total=counts.rejected + running.connections.refused,
            errors_total=counts.errors,
            keys=running.gateway.key_uses(),
        )

    def load_options(self, model_id: str) -> LoadOptions | None:
        """How a model that is served was to be loaded, so that a later load on demand does the same."""
        running = self._running
        if running is None or running.offered is None or model_id not in running.offered:
            return None
        return _chosen(running.options)

    async def start(self, options: ServerOptions) -> ServerState:
        """Check the options, load the named models, listen. Keys are looked up in the ring given at construction.

        Raises:
            BusyError: it runs already, or the port is taken.
            PolicyError: the options would open the server wider than they say aloud.
            LatheError: a model cannot be loaded.
        """
        if self._running is not None or self._starting:
            raise BusyError(f"already serving at {self.state.url}", hint="stop it first")
        self._starting = True
        try:
            self._running = await self._start(options)
        except BaseException as error:
            self._last = ServerState(running=False, options=options, failure=describe(error))
            self._publish(ServerChanged(self._last))
            raise
        finally:
            self._starting = False
        self._publish(ServerChanged(self.state))
        self._log.note("info", f"listening at {self.state.url}")
        return self.state

    async def stop(self, drain_s: float | None = None) -> ServerState:
        """Stop accepting, let running requests finish for `drain_s`, end the rest.

        It goes on where its caller leaves, and a second call waits for the same end.
        """
        running = self._running
        if running is None:
            return self.state
        if self._stopping is None:
            running.gateway.draining = True
            self._publish(ServerChanged(self.state))
            closing = self._close(running, self._limits.drain_s if drain_s is None else drain_s)
            self._stopping = asyncio.create_task(closing, name="http stop")
        return await asyncio.shield(self._stopping)

    async def _close(self, running: _Running, drain_s: float) -> ServerState:
        try:
            await running.close(drain_s)
            if running.bodies is not None:
                await running.bodies.close()
        finally:
            self._log.flush()
            final = self.state
            self._running = self._stopping = None
            self._last = ServerState(
                running=False, options=final.options, requests_total=final.requests_total,
                rejected_total=final.rejected_total, errors_total=final.errors_total,
            )  # fmt: skip
            self._publish(ServerChanged(self._last))
        self._log.note("info", "stopped")
        return self._last

    async def _start(self, options: ServerOptions) -> _Running:
        tls = _tls(options)
        listener, remote = _bind(options, len(self._keys))
        try:
            offered = await self._load(options)
            metrics = Metrics(time.perf_counter)
            service = Service(self._workbench, Catalogue(self._workbench, offered), metrics, options)
            service.server_state = lambda: self.state
            bodies = self._bodies()
            gateway = Gateway(service, TABLE, self._keys, self._log, self._limits, remote=remote, bodies=bodies)
            running = _Running(options, _url(options, listener, tls), gateway, Connections(self._limits), self._limits)
            running.offered, running.bodies = offered, bodies
            await running.listen(listener, tls)
        except BaseException:
            _close(listener, options)
            raise
        return running

    def _bodies(self) -> BodyLog | None:
        path = self._bodies_at()
        if path is None:
            return None
        self._log.note("warn", f"bodies of requests and answers are logged, masked, to {path}")
        return BodyLog(path, lambda text: self._log.note("error", text))

    async def _load(self, options: ServerOptions) -> frozenset[str] | None:
        """Load what is to be served from the start; what is loaded stays loaded if a later one fails."""
        if not options.models:
            return None
        chosen = _chosen(options)
        return frozenset([(await self._workbench.load(reference, chosen)).model_id for reference in options.models])


def _chosen(options: ServerOptions) -> LoadOptions | None:
    """Options that say nothing leave the choice to the workspace's settings."""
    return None if options.options == LoadOptions() else options.options


class _Running:
    """A listening server."""

    def __init__(
        self, options: ServerOptions, url: str, gateway: Gateway, connections: Connections, limits: Limits
    ) -> None:
        self.options = options
        self.url = url
        self.gateway = gateway
        self.connections = connections
        self.started_at = time.time()
        self.offered: frozenset[str] | None = None
        """Ids of the models named at the start."""
        self.bodies: BodyLog | None = None
        self._limits = limits
        self._uvicorn = UvicornState()
        self._server: asyncio.Server | None = None
        self._listener: socket.socket | None = None

    async def listen(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Begin to accept."""
        _raise_file_limit(self._limits.connections + 512)
        config = Config(
            self.gateway, http="h11", ws="none", lifespan="off", interface="asgi3", log_config=None, access_log=False,
            proxy_headers=False, server_header=False, date_header=False, timeout_keep_alive=int(self._limits.idle_s),
        )  # fmt: skip
        config.load()
        self._server = await asyncio.get_running_loop().create_server(
            lambda: GuardedProtocol(config, self._uvicorn, self.connections),
            sock=listener,
            ssl=tls,
            backlog=BACKLOG,
            ssl_handshake_timeout=_HANDSHAKE_S if tls else None,
        )
        self._listener = listener

    async def close(self, drain_s: float) -> None:
        """Close the listener and idle connections, wait for the rest, then end them."""
        assert self._server is not None and self._listener is not None
        self._server.close()
        for connection in list(self.connections.live):
            connection.shutdown()
        tasks = set(self._uvicorn.tasks)
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=drain_s)
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)
        for connection in list(self.connections.live):
            connection.transport.abort()
        self.connections.sweeper.stop()
        _close(self._listener, self.options)


def _bind(options: ServerOptions, keys: int) -> tuple[socket.socket, bool]:
    """Return a bound socket that does not listen yet, and whether other machines can reach it."""
    if options.unix_socket is not None:
        check_options(options, (), keys)
        return _bind_unix(Path(options.unix_socket)), False
    addresses = resolve(options.host, options.port)
    check_options(options, [address[0] for _, address in addresses], keys)
    family, address = addresses[0]
    # asyncio switches Nagle's algorithm off only where the protocol is named; without that every answer waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise BusyError(
                f"port {options.port} of {options.host} is taken", hint="choose another, or 0 for a free one"
            ) from None
        raise CannotCreate(f"cannot listen at {options.host}:{options.port}: {error.strerror}") from None
    listener.setblocking(False)
    return listener, not _all_loopback(address[0])


def _all_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _bind_unix(path: Path) -> socket.socket:
    try:
        if stat.S_ISSOCK(path.stat().st_mode):
            _clear_stale(path)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)  # nobody can connect before `listen`, so there is no moment in which it is open to others
    except OSError as error:
        listener.close()
        raise CannotCreate(f"cannot make the socket {path}: {error.strerror or error}") from None
    listener.setblocking(False)
    return listener


def _clear_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise BusyError(f"another server listens at {path}", hint="stop it or choose another path")


def _close(listener: socket.socket, options: ServerOptions) -> None:
    listener.close()
    if options.unix_socket is not None:
        Path(options.unix_socket).unlink(missing_ok=True)


def _url(options: ServerOptions, listener: socket.socket, tls: ssl.SSLContext | None) -> str:
    if options.unix_socket is not None:
        return f"unix:{options.unix_socket}"
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"{'https' if tls else 'http'}://{host}:{listener.getsockname()[1]}"


def _tls(options: ServerOptions) -> ssl.SSLContext | None:
    if options.tls_certificate is None or options.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(options.tls_certificate, options.tls_key, password=_no_password)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the TLS certificate or key cannot be used: {error}") from None
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one without a pass phrase")


def _raise_file_limit(wanted: int) -> None:
    """Ask for as many file descriptors as the connection cap needs; what the system refuses stays refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
