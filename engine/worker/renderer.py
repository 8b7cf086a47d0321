"""The warm helper process in which chat templates are rendered, as its user sees it.

Invariant: a template that loops, grows or kills the helper costs one error and a new helper, never the worker.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from lathe.engine.errors import UsageError, revive
from lathe.engine.wire import Decoder, frame

_WALL_S = 10.0
"""A render that takes longer is stuck, whatever its processor time says."""


class TooSlow(UsageError):
    """The template killed its helper, or took too long."""

    code = "E_TEMPLATE"


class Renderer:
    """A warm helper process. Thread-safe: one render at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._helper: subprocess.Popen[bytes] | None = None

    def warm_up(self) -> None:
        """Start the helper, so that the first render need not wait for it."""
        with self._lock:
            self._running()

    def render(self, template: str, variables: Mapping[str, Any], limit: int) -> str:
        """Render a template.

        Raises:
            UsageError: the template refuses, is wrong, or exceeds its limits of time, memory or output.
        """
        from lathe.engine.worker.rendering import Answer, Job, NotRendered

        with self._lock:
            helper = self._running()
            assert helper.stdin is not None
            assert helper.stdout is not None
            try:
                helper.stdin.write(frame(Job(template, json.dumps(variables), limit)))
                helper.stdin.flush()
                answer: Answer = self._receive(helper, Decoder(Answer))
            except (BrokenPipeError, EOFError, TimeoutError) as error:
                self._discard()
                raise TooSlow(
                    "the chat template exceeds its limits of time or memory",
                    hint="choose another template; this one loops or grows without end",
                ) from error
            except BaseException:
                self._discard()  # an answer may still be on its way
                raise
        if isinstance(answer, NotRendered):
            raise revive(answer.failure)
        return answer.text

    def close(self) -> None:
        """End the helper. Any thread, also while it renders."""
        helper = self._helper
        if helper is not None:
            helper.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._helper is None or self._helper.poll() is not None:
            self._discard()
            self._helper = subprocess.Popen(
                [sys.executable, "-P", "-m", "lathe.engine.worker.rendering"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        return self._helper

    def _discard(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.kill()
            helper.wait()
            for pipe in (helper.stdin, helper.stdout):
                assert pipe is not None
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass  # a job it never took

    @staticmethod
    def _receive(helper: subprocess.Popen[bytes], decoder: Decoder[Any]) -> Any:
        assert helper.stdout is not None
        deadline = time.monotonic() + _WALL_S
        while True:
            ready, _, _ = select.select((helper.stdout,), (), (), max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            data = os.read(helper.stdout.fileno(), 1 << 16)
            if not data:
                raise EOFError
            for answer in decoder.feed(data):
                return answer
