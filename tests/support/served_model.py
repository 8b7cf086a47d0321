"""The embedded model behind a running HTTP server of a whole engine: catalogue, pool, worker process and all."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
from lathe.engine.local import LocalWorkbench
from lathe.engine.paths import Home
from lathe.engine.states import ServerOptions, WorkerState
from lathe.engine.workbench import ApiKey
from lathe.engine.worker.messages import LoadOptions

OPTIONS = LoadOptions(context=256, slots=4, threads=1)


class ServedModel:
    """A server with one model and one key."""

    def __init__(self, workbench: LocalWorkbench, url: str, secret: str, model: str) -> None:
        self.workbench = workbench
        self.url = url
        self.port = int(url.rpartition(":")[2])
        self.secret = secret
        self.model = model
        self.client = httpx2.AsyncClient(
            base_url=url, headers={"authorization": f"Bearer {secret}"}, timeout=60,
            limits=httpx2.Limits(max_connections=32),
        )  # fmt: skip

    async def worker(self) -> WorkerState:
        """The one worker."""
        (worker,) = (await self.workbench.snapshot()).workers
        return worker

    async def errors(self) -> int:
        """Answers with 500 so far."""
        return (await self.workbench.snapshot()).server.errors_total

    async def key(self, name: str) -> dict[str, str]:
        """Headers of another key."""
        made = await self.workbench.make_key(ApiKey(name=name, created_at=0.0))
        return {"authorization": f"Bearer {made.secret}"}


@contextlib.asynccontextmanager
async def served_model(home: Path, gguf: Path, options: LoadOptions = OPTIONS) -> AsyncIterator[ServedModel]:
    """An engine in this process that serves a model file on a free port."""
    workbench = await LocalWorkbench.open(Home(home))
    try:
        key = await workbench.make_key(ApiKey(name="tester", created_at=0.0))
        state = await workbench.start_server(ServerOptions(port=0, models=(str(gguf),), options=options))
        (worker,) = (await workbench.snapshot()).workers
        served = ServedModel(workbench, state.url or "", key.secret or "", worker.name)
        try:
            yield served
        finally:
            await served.client.aclose()
    finally:
        await workbench.close()
