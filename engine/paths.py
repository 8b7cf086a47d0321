"""Where a workspace keeps its files, and nothing else.

    $LATHE_HOME/            or the platform's user data folder
      lathe.db              registry, jobs, runs, requests, samples
      evals.db  suites/     eval runs with their answers; suites of this workspace
      models/               what Lathe made
      stores/               one SQLite file per RAG store
      runs/  jobs/  logs/   reports, checkpoints of jobs, logs
      run/                  sockets and locks, 0700

Invariant: nothing is created until `create` is called, and private folders are 0700 whatever the umask.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lathe.engine.errors import CannotCreate

_SUN_PATH = 100
"""Longest socket path that every Unix accepts (108 bytes on Linux, 104 on macOS)."""


@dataclass(frozen=True)
class Home:
    """One workspace."""

    root: Path

    @classmethod
    def find(cls, explicit: str | Path | None = None) -> Home:
        """The workspace named by the argument, `LATHE_HOME`, or the platform's convention."""
        chosen = explicit or os.environ.get("LATHE_HOME")
        if not chosen:
            import platformdirs

            chosen = platformdirs.user_data_dir("lathe", appauthor=False)
        return cls(Path(chosen).expanduser().absolute())

    @property
    def database(self) -> Path:
        """Registry, jobs, runs, requests and samples."""
        return self.root / "lathe.db"

    @property
    def models(self) -> Path:
        """Artefacts that Lathe made."""
        return self.root / "models"

    @property
    def stores(self) -> Path:
        """RAG stores, one SQLite file each."""
        return self.root / "stores"

    @property
    def toolchain(self) -> Path:
        """llama.cpp's own converter, by version."""
        return self.root / "toolchain"

    @property
    def runs(self) -> Path:
        """Reports of batch runs."""
        return self.root / "runs"

    @property
    def evals(self) -> Path:
        """Eval runs with their prompts and answers."""
        return self.root / "evals.db"

    @property
    def suites(self) -> Path:
        """Eval suites of this workspace."""
        return self.root / "suites"

    @property
    def logs(self) -> Path:
        """The engine's log and its children's."""
        return self.root / "logs"

    @property
    def private(self) -> Path:
        """Sockets, locks and the engine's record; 0700."""
        return self.root / "run"

    @property
    def engine_log(self) -> Path:
        """JSON lines of everything the engine says."""
        return self.logs / "engine.jsonl"

    @property
    def http_bodies(self) -> Path:
        """What clients of the HTTP API sent and got, where the user wants that logged."""
        return self.logs / "http-bodies.jsonl"

    def job(self, job_id: str) -> Path:
        """The folder of one job: checkpoint, log."""
        return self.root / "jobs" / job_id

    @property
    def socket(self) -> Path:
        """The engine's private socket; a short stand-in path where the workspace's own is too long for one."""
        path = self.private / "engine.sock"
        if len(os.fsencode(path)) <= _SUN_PATH:
            return path
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        return base / f"lathe-{os.getuid()}-{digest}" / "engine.sock"

    def create(self) -> Home:
        """Make the folders.

        Raises:
            CannotCreate: the place is not writable; the message names it and the variable that moves it.
        """
        try:
            for folder in (self.root, self.models):
                folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            # Documents, prompts and answers are nobody else's, whatever the umask.
            for folder in (self.stores, self.runs, self.logs, self.root / "jobs"):
                folder.mkdir(mode=0o700, exist_ok=True)
            for folder in (self.private, self.socket.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if folder.stat().st_uid != os.getuid():
                    raise CannotCreate(f"{folder} belongs to another user", hint="set LATHE_HOME to a folder of yours")
                folder.chmod(0o700)
        except OSError as error:
            raise CannotCreate(
                f"cannot create the workspace {self.root}: {error.strerror or error}",
                hint="set LATHE_HOME to a writable folder",
            ) from error
        return self
