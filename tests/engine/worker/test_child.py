"""The worker process end to end on the scripted backend: exchanges, lifetime, and faults as F20-F22 want them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from lathe.engine import wire
from lathe.engine.generation import EmbedRequest, Message, Sampling, ScoreRequest
from lathe.engine.wire import Decoder, WireError
from lathe.engine.worker import child as child_module
from lathe.engine.worker.messages import (
    Beat,
    Detokenize,
    Done,
    Drain,
    Embed,
    Failed,
    FromWorker,
    Load,
    LoadOptions,
    Prompt,
    Render,
    Scores,
    ScoreTexts,
    Text,
    Tokenize,
    Tokens,
    Vectors,
    WorkerStats,
)
from lathe.engine.worker.outbox import Outbox
from support.waiting import until
from support.worker_child import WorkerChild, worker_child


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    children: list[Any] = []

    def begin(script: str, **options: Any) -> WorkerChild:
        context = worker_child(f"scripted:{script}", tmp_path / f"worker-{len(children)}.log", **options)
        child = context.__enter__()
        children.append(context)
        return child

    yield begin
    for context in children:
        context.__exit__(None, None, None)


def test_a_generation_streams_and_ends_once(start: Any) -> None:
    child = start("echo")
    info = child.ready()
    assert info.backend == "scripted"
    assert info.pid == child.process.pid
    got = child.answer(child.generate(prompt="grüße, Welt 🌍"))
    assert got.text() == "grüße, Welt 🌍"
    assert len(got.deltas) > 3
    assert got.finish() == "stop"
    assert got.last.usage.completion_tokens == len(got.tokens())
    timing = got.last.timing
    assert 0 <= timing.scheduled_s <= timing.first_token_s <= timing.finished_s


def test_every_lookup_and_request_kind_is_answered(start: Any) -> None:
    child = start("words?dimensions=8")
    child.ready()
    tokens = child.answer(child.ask(Tokenize, text="hello")).messages[0]
    assert isinstance(tokens, Tokens)
    text = child.answer(child.ask(Detokenize, tokens=tokens.tokens)).messages[0]
    assert isinstance(text, Text)
    assert text.text == "hello"
    prompt = child.answer(child.ask(Render, messages=(Message("user", "hi"),))).messages[0]
    assert isinstance(prompt, Prompt)
    assert prompt.rendered.text.endswith("assistant: ")
    scores = child.answer(child.ask(ScoreTexts, request=ScoreRequest(model="m", context="a", continuations=("b", "c"))))
    assert isinstance(scores.messages[0], Scores)
    assert len(scores.messages[0].scores) == 2
    vectors = child.answer(child.ask(Embed, request=EmbedRequest(model="m", texts=("a b", "c", ""))))
    assert isinstance(vectors.messages[0], Vectors)
    embeddings = vectors.messages[0].embeddings
    assert (embeddings.rows, embeddings.dimensions, len(embeddings.vectors)) == (3, 8, 3 * 8 * 4)


def test_the_same_request_gives_the_same_text_and_another_seed_another(start: Any) -> None:
    child = start("words")
    child.ready()
    texts = [child.text(prompt="p", sampling=Sampling(seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_choices_interleave_with_one_usage_at_the_end(start: Any) -> None:
    child = start("words?tokens=4")
    child.ready()
    got = child.answer(child.generate(prompt="p", n=3))
    assert {got.text(index) for index in range(3)} != {got.text(0)}
    assert got.last.index == 2
    assert got.last.usage.completion_tokens == 12


def test_a_bad_parameter_fails_alone(start: Any) -> None:
    child = start("echo")
    child.ready()
    bad = child.answer(child.generate(prompt="p", sampling=Sampling(temperature=float("nan"))))
    assert bad.failed is not None
    assert "temperature" in bad.failed.failure.message
    long = child.answer(child.generate(prompt="x" * 20_000))
    assert long.failed is not None
    assert long.failed.failure.code == "E_CONTEXT_OVERFLOW"
    assert "6667" in long.failed.failure.message
    assert child.text(prompt="still here") == "still here"


def test_cancel_ends_with_what_was_produced(start: Any) -> None:
    child = start("words?tokens=1000&delay_ms=5")
    child.ready()
    request = child.generate(prompt="p")
    child.receive()
    child.cancel(request)
    got = child.answer(request)
    assert got.finish() == "cancelled"
    assert got.last.usage.completion_tokens < 1000
    child.cancel(request)  # again, after its end: ignored
    child.cancel(12345)
    assert child.text(prompt="q", max_tokens=1)


def test_a_waiting_request_can_be_cancelled(start: Any) -> None:
    child = start("words?tokens=1000&delay_ms=50", slots=1)
    child.ready()
    first, second = child.generate(prompt="a"), child.generate(prompt="b")
    child.receive()
    child.cancel(second)
    got = child.answer(second)
    assert got.finish() == "cancelled"
    assert got.last.usage.completion_tokens == 0
    child.cancel(first)
    child.answer(first)


def test_a_deadline_ends_a_request(start: Any) -> None:
    child = start("words?tokens=100000&context=500000&delay_ms=20")
    child.ready()
    assert child.answer(child.generate(prompt="p", deadline_s=0.2)).finish() == "deadline"


def test_beats_show_live_requests(start: Any) -> None:
    child = start("words?tokens=10000&context=50000&delay_ms=10")
    child.ready()
    request = child.generate(prompt="prompt", client="playground A")
    child.until(lambda: any(beat.stats.requests for beat in child.beats))
    row = next(beat for beat in child.beats if beat.stats.requests).stats.requests[0]
    assert (row.id, row.client, row.prompt_tokens) == (request, "playground A", 2)
    child.cancel(request)
    child.answer(request)


def test_a_stuck_native_call_shows_as_busy_while_beats_go_on(start: Any) -> None:
    child = start("words?hang_after=2")
    child.ready()
    child.generate(prompt="p")
    child.until(lambda: any(beat.stats.busy_s > 0.6 for beat in child.beats))
    child.process.kill()


def test_beats_go_on_when_a_look_at_the_backend_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine thread works while the beat thread looks; a look that fails must not pass for a worker that hangs."""

    class Changing:
        looks = 0

        def stats(self) -> WorkerStats:
            self.looks += 1
            if self.looks == 2:
                raise RuntimeError("dictionary changed size during iteration")
            return WorkerStats(iterations=self.looks)

    ours, theirs = socket.socketpair()
    worker = child_module.Worker(theirs)
    worker._backend = Changing()  # type: ignore[assignment]
    naps = iter([None, None])
    monkeypatch.setattr(child_module.time, "sleep", lambda _seconds: next(naps))
    with ours, theirs:
        with pytest.raises(StopIteration):
            worker._beat()
        beats = list(Decoder[Beat](FromWorker).feed(ours.recv(65536)))
    assert [beat.stats.iterations for beat in beats] == [1, 1, 3]


def test_drain_finishes_the_running_and_refuses_the_new(start: Any) -> None:
    child = start("words?tokens=40&delay_ms=5")
    child.ready()
    running = child.generate(prompt="p")
    child.receive()
    child.send(Drain())
    late = child.generate(prompt="late")
    got = child.collect(running, late)
    assert got[late].failed.failure.code == "E_DRAINING"
    assert got[running].finish() == "stop"
    assert child.wait() == 0


async def test_drain_ends_a_worker_whose_last_exchange_is_a_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle:
        def answer(self, lookup: Tokenize) -> Tokens:
            return Tokens(lookup.id, (1,))

        def step(self) -> None:
            return None

    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = child_module.Worker(theirs)
        worker._backend = Idle()  # type: ignore[assignment]
        left: list[int] = []
        monkeypatch.setattr(worker, "_loaded", lambda _load: worker._backend)
        monkeypatch.setattr(worker, "_leave", left.append)
        worker._exchanges.start(1)
        engine = threading.Thread(target=worker._engine, args=(Load("", "m", LoadOptions()),), daemon=True)
        engine.start()
        worker._drain()
        await until(lambda: not worker._mailbox)
        worker._prepare(Tokenize(1, "hi"))
        await until(lambda: left == [0])
        engine.join()


def test_an_answer_that_cannot_travel_fails_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_FRAME", 1000)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        exchanges = child_module.Exchanges(Outbox(theirs))
        for request in (1, 2, 3):
            exchanges.start(request)
        for request, text in ((1, "x" * 2000), (2, "half a character: \ud83d"), (3, "fine")):
            exchanges.send((Text(request, text), Done(request)))
        got = list(Decoder[FromWorker](FromWorker).feed(ours.recv(65536)))
    assert [(type(message), message.id) for message in got] == [(Failed, 1), (Failed, 2), (Text, 3), (Done, 3)]
    assert not len(exchanges)


@pytest.mark.parametrize(
    ("script", "signals", "code"), [("echo", 1, 0), ("words?tokens=100000&context=500000&delay_ms=50", 2, 143)]
)
def test_term_drains_and_a_second_one_ends(start: Any, script: str, signals: int, code: int) -> None:
    child = start(script)
    child.ready()
    if signals == 2:
        child.generate(prompt="p")
        child.receive()
    child.process.send_signal(signal.SIGTERM)
    while signals == 2 and child.process.poll() is None:
        time.sleep(0.1)  # signals of one kind do not queue: a second one that comes at once may be lost
        child.process.send_signal(signal.SIGTERM)
    assert child.wait() == code


def test_a_scripted_worker_can_ignore_term(start: Any) -> None:
    child = start("echo?ignore_term=1")
    child.ready()
    child.process.send_signal(signal.SIGTERM)
    assert child.text(prompt="alive") == "alive"


def test_a_failed_load_says_why_and_exits(start: Any) -> None:
    child = start("echo?fail_load=broken+file")
    message = child.receive()
    assert isinstance(message, Failed)
    assert (message.id, message.failure.message) == (0, "broken file")
    assert child.wait() == 65


def test_an_unknown_script_key_is_refused(start: Any) -> None:
    message = start("echo?speed=11").receive()
    assert isinstance(message, Failed)
    assert "speed" in message.failure.message


def test_loading_reports_progress_and_refuses_requests_meanwhile(start: Any) -> None:
    child = start("echo?slow_load_s=1")
    got = child.answer(child.generate(prompt="early"))
    assert got.failed.failure.code == "E_LOADING"
    child.ready()
    assert child.progress == sorted(child.progress)
    assert child.progress[-1] == 1.0
    assert child.beats


@pytest.mark.parametrize(
    ("fault", "status"), [("crash_after=3", -signal.SIGABRT), ("exit_after=3", 3), ("crash_load=1", -signal.SIGABRT)]
)
def test_scripted_deaths_are_deaths(start: Any, fault: str, status: int) -> None:
    child = start(f"words?{fault}")
    if "load" not in fault:
        child.ready()
        child.generate(prompt="p")
    with pytest.raises(EOFError):
        while True:
            child.receive()
    assert child.wait() == status


def test_scripted_junk_breaks_the_framing(start: Any) -> None:
    child = start("words?junk_after=2")
    child.ready()
    child.generate(prompt="p")
    with pytest.raises(WireError):
        while True:
            child.receive()


def test_one_failing_request_leaves_the_others(start: Any) -> None:
    child = start("words?tokens=8&fail_after=6")
    child.ready()
    long, short = child.generate(prompt="p"), child.generate(prompt="q", max_tokens=5)
    got = child.collect(long, short)
    assert got[long].failed is not None
    assert got[short].finish() == "length"


def test_the_channel_closing_ends_the_child(start: Any) -> None:
    child = start("words?tokens=100000&context=500000&delay_ms=10")
    child.ready()
    child.generate(prompt="p")
    child.channel.close()
    assert child.process.wait(10) == 0


def test_junk_from_the_parent_ends_the_child(start: Any) -> None:
    child = start("echo")
    child.ready()
    child.channel.sendall(b"\x00\x00\x00\x04junk")
    assert child.wait() == 70


def test_a_second_load_ends_the_child(start: Any) -> None:
    child = start("echo")
    child.ready()
    child.send(Load(path="scripted:echo", name="other", options=LoadOptions()))
    assert child.wait() == 70


def test_a_child_dies_with_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import socket, subprocess, sys, time\n"
        "from lathe.engine.wire import frame\n"
        "from lathe.engine.worker.messages import Load, LoadOptions\n"
        "ours, theirs = socket.socketpair()\n"
        "child = subprocess.Popen([sys.executable, '-m', 'lathe.engine.worker.child', str(theirs.fileno())],\n"
        "                         pass_fds=(theirs.fileno(),))\n"
        "theirs.close()\n"
        "ours.sendall(frame(Load(path='scripted:echo', name='m', options=LoadOptions())))\n"
        "ours.recv(1)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs([worker], timeout=10)
    assert not alive


def test_a_slow_reader_holds_the_worker_back_but_loses_nothing(start: Any) -> None:
    child = start("say?context=4000000&text=" + "x" * 3000)
    child.ready()
    requests = [child.generate(prompt="p", n=16) for _ in range(20)]
    time.sleep(0.5)  # the socket's own buffer fills meanwhile
    got = child.collect(*requests)
    assert all(exchange.text(15) == "x" * 3000 for exchange in got.values())


def test_no_heavy_import_happens_before_load() -> None:
    heavy = "('numpy', 'llama_cpp', 'jinja2')"
    code = f"import lathe.engine.worker.child, sys; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert run.stdout.strip() == "[]"
