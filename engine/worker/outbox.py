"""The child's side of the channel: frames go out in order, and a slow reader never makes the buffer grow.

Writes go straight to the socket while it takes them; what it does not take waits in a buffer that a thread empties.
Invariant: at most `LIMIT` bytes wait; a sender that would exceed it waits, and heartbeats are left out instead.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterable

from lathe.engine.wire import frame
from lathe.engine.worker.messages import FromWorker

LIMIT = 32 * 1024 * 1024


class Outbox:
    """Thread-safe writer of frames."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._waiting = bytearray()
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._empty, name="outbox", daemon=True).start()

    def send(self, messages: Iterable[FromWorker]) -> None:
        """Write messages as frames, together; waits only while `LIMIT` bytes are already waiting."""
        self.write(b"".join(map(frame, messages)))

    def write(self, data: bytes) -> None:
        """Write whole frames, as `send` does."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._waiting) < LIMIT)
            if self._closed:
                return  # the parent is gone; the reading thread ends the process
            sent = 0 if self._waiting else self._try_send(data)
            if sent < len(data):
                self._waiting += data[sent:]
                self._changed.notify_all()

    def send_if_clear(self, message: FromWorker) -> None:
        """Write a message unless earlier ones still wait; for heartbeats, where only the newest matters."""
        if not self._waiting:
            self.send((message,))

    def flush(self, timeout_s: float) -> None:
        """Wait until everything is written, at most `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._waiting, timeout_s)

    def _try_send(self, data: bytes | bytearray | memoryview) -> int:
        try:
            return self._channel.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            self._closed = True
            self._changed.notify_all()
            return 0

    def _empty(self) -> None:
        while not self._closed:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or bool(self._waiting))
            select.select((), (self._channel,), ())
            with self._changed:
                if self._waiting and not self._closed:
                    sent = self._try_send(bytes(self._waiting[: 1 << 20]))
                    del self._waiting[:sent]
                    self._changed.notify_all()
