"""The process that lm-evaluation-harness runs in: `python -m lathe.engine.evals.harness_child FD`.

It asks the engine's models through the engine's private socket, so that the harness and its torch stay out of the
engine. Frames: one `Ask` in; `Told` and `Part` out, then one `Ended` or `Broke`. Invariant: nothing is downloaded, and
what the harness prints goes to the log.
"""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path

import msgspec
from lathe.engine.errors import DataError, Failure, MissingError, describe
from lathe.engine.evals.harness import Bridge, run_tasks
from lathe.engine.evals.harness_records import convert
from lathe.engine.evals.results import Record
from lathe.engine.evals.values import Task
from lathe.engine.paths import Home
from lathe.engine.steps import HarnessStep
from lathe.engine.wire import frame, receive_blocking

_PART = 200
"""Records in one frame."""


class Ask(msgspec.Struct, frozen=True, tag=True):
    step: HarnessStep
    home: str


class Told(msgspec.Struct, frozen=True, tag=True):
    """Answers so far; how many there will be is the harness's secret."""

    answers: int


class Part(msgspec.Struct, frozen=True, tag=True):
    records: tuple[Record, ...]


class Ended(msgspec.Struct, frozen=True, tag=True):
    tasks: tuple[Task, ...]
    version: str
    left_out: tuple[str, ...] = ()


class Broke(msgspec.Struct, frozen=True, tag=True):
    failure: Failure


FromHarness = Told | Part | Ended | Broke


def main() -> None:
    """Answer one request."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    ask: Ask = next(receive_blocking(channel, Ask))
    try:
        _run(ask, channel)
    except Exception as error:  # noqa: BLE001 - whatever the harness or a task of it raises
        channel.sendall(frame(Broke(describe(error))))


def _run(ask: Ask, channel: socket.socket) -> None:
    step = ask.step
    if step.include is not None and not Path(step.include).is_dir():
        raise MissingError(f"{step.include}: no such folder of tasks")
    told = 0

    def count() -> None:
        nonlocal told
        told += 1
        if told % 20 == 0:
            channel.sendall(frame(Told(told)))

    with Bridge(Home(Path(ask.home)), count) as bridge:
        results = run_tasks(
            bridge, step.model, step.tasks, include_path=Path(step.include) if step.include else None,
            options=step.options, limit=step.limit, num_fewshot=step.fewshot, apply_chat_template=step.chat,
            bootstrap_iters=0, random_seed=step.seed, numpy_random_seed=step.seed, fewshot_random_seed=step.seed,
        )  # fmt: skip
    if not results:
        raise DataError("the harness returned nothing")
    from lm_eval import __version__

    found = convert(results)
    for start in range(0, len(found.records), _PART):
        channel.sendall(frame(Part(found.records[start : start + _PART])))
    channel.sendall(frame(Ended(found.tasks, __version__, found.left_out)))


if __name__ == "__main__":
    main()
