"""Models from before GGUF in a worker: ctransformers computes, the rest is ours."""

from __future__ import annotations

import platform
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lathe.engine.errors import UnavailableError
from lathe.engine.generation import EmbedRequest, GenerationRequest, Sampling, ScoreRequest
from lathe.engine.worker.backends.legacy import Legacy
from lathe.engine.worker.backends.legacy_native import LegacyVocabulary, open_model
from lathe.engine.worker.backends.turns import Turns
from lathe.engine.worker.messages import Done, Embed, Failed, FromWorker, Generate, Piece, Scores, ScoreTexts
from support.legacy_files import old_gpt2, old_llama
from support.worker_child import WorkerChild, worker_child

PROMPT = "hello world"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("ctransformers", reason="needs the extra `legacy`")
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("ctransformers ships builds for x86-64 only")
    folder = tmp_path_factory.mktemp("legacy")
    old, modern = old_llama(folder)
    return {"llama": old, "modern": modern, "gpt2": old_gpt2(folder / "gpt2.bin")}


@pytest.fixture(scope="module")
def child(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerChild]:
    with worker_child(files["llama"], tmp_path_factory.mktemp("log") / "old.log", threads=1, context=128) as made:
        made.info = made.ready()  # type: ignore[attr-defined]
        yield made


def test_it_says_what_it_is_and_what_it_cannot(child: WorkerChild) -> None:
    info = child.info  # type: ignore[attr-defined]
    assert (info.backend, info.slots, info.context) == ("ctransformers", 1, 128)
    assert set(info.capabilities) == {"generate", "score"}
    assert "llama F16 in ggjt" in info.system
    refused = child.answer(child.ask(Embed, request=EmbedRequest(model="t", texts=("a",)))).failed
    assert refused is not None
    assert refused.failure.code == "E_CAPABILITY"
    for sampling in (Sampling(grammar='root ::= "a"'), Sampling(dry_multiplier=0.5)):
        failed = child.answer(child.generate(prompt="a", max_tokens=2, sampling=sampling)).failed
        assert failed is not None
        assert "lathe convert" in failed.failure.hint


def test_the_text_is_that_of_the_converted_file(child: WorkerChild, files: dict[str, Path], tmp_path: Path) -> None:
    with worker_child(files["modern"], tmp_path / "log", threads=1, context=128) as modern:
        modern.ready()
        for sampling in (Sampling(temperature=0, ignore_eos=True), Sampling(seed=4, ignore_eos=True)):
            ours, theirs = (
                one.answer(one.generate(prompt=PROMPT, max_tokens=12, sampling=sampling)).tokens()
                for one in (child, modern)
            )
            assert ours == theirs
        request = ScoreRequest(model="t", context="hello", continuations=(" world", " there"))
        scores = []
        for one in (child, modern):
            answer = one.answer(one.ask(ScoreTexts, request=request))
            (message,) = (m for m in answer.messages if isinstance(m, Scores))
            scores.append([score.logprob for score in message.scores])
        np.testing.assert_allclose(scores[0], scores[1], atol=0.02)


def test_gpt2_of_that_time_runs_too(files: dict[str, Path], tmp_path: Path) -> None:
    with worker_child(files["gpt2"], tmp_path / "log", threads=1) as child:
        assert child.ready().context == 64
        both = child.answer(child.generate(prompt="abc", max_tokens=8, n=2, sampling=Sampling(seed=1, ignore_eos=True)))
        assert both.finish(0) == both.finish(1) == "length"
        assert both.tokens(0) != both.tokens(1)
        again = child.answer(child.generate(prompt="abc", max_tokens=8, sampling=Sampling(seed=1, ignore_eos=True)))
        assert again.tokens() == both.tokens(0)
        assert again.last.usage is not None
        assert again.last.usage.cached_tokens == 2


def test_requests_take_turns_and_one_is_cancelled_between_tokens(child: WorkerChild) -> None:
    endless = Sampling(temperature=0, ignore_eos=True)
    first = child.generate(prompt=PROMPT * 3, max_tokens=100, sampling=endless)
    second = child.generate(prompt=PROMPT, max_tokens=5, sampling=endless)
    child.cancel(first)
    got = child.collect(first, second)
    assert got[first].finish() == "cancelled"
    assert len(got[first].tokens()) < 100
    assert len(got[second].tokens()) == 5


@pytest.mark.native
@pytest.mark.parametrize("leaves", [False, True])
def test_a_request_that_is_cancelled_while_it_waits_leaves_the_running_one_alone(leaves: bool) -> None:
    class Cells:
        """A library whose logits follow from all that its cells hold."""

        context_length, vocabulary, bos, eos = 2048, 256, -1, -1
        cells: list[int] = []  # noqa: RUF012 - replaced, never changed

        def tokenize(self, text: bytes, bos: bool) -> list[int]:
            return list(text)

        def piece(self, token: int) -> bytes:
            return bytes([token])

        def ends(self, token: int) -> bool:
            return False

        def compute(self, tokens: list[int], known: int) -> None:
            self.cells = self.cells[:known] + tokens

        def logits(self) -> np.ndarray[Any, Any]:
            row = np.zeros(256, np.float32)
            row[zlib.crc32(bytes(self.cells)) % 256] = 9
            return row

    def ask(number: int, prompt: str) -> None:
        request = GenerationRequest(model="m", prompt=prompt, max_tokens=8, sampling=Sampling(temperature=0))
        turns.begin(turns.admit(Generate(number, request)))

    model = Legacy()
    model._model = cells = Cells()  # type: ignore[assignment]
    model._vocabulary = LegacyVocabulary(model._model, adds_bos=False)
    model._context, model._computed = 2048, []
    sent: list[FromWorker] = []
    turns = Turns(model, sent.extend)
    prompt = "a prompt of several chunks " * 10
    ask(1, prompt)
    turns.step()
    if leaves:
        ask(2, "what somebody else asked " * 10)
        turns.cancel(2)
    while Done(1) not in sent:
        turns.step()
    tokens = [token for one in sent if isinstance(one, Piece) and one.id == 1 for d in one.deltas for token in d.tokens]
    expected = list(prompt.encode())
    while len(expected) < len(prompt) + 8:
        expected.append(zlib.crc32(bytes(expected)) % 256)
    assert tokens == expected[len(prompt) :]
    assert cells.cells == expected[:-1]
    assert (Done(2) in sent) == leaves


def test_log_probabilities_are_those_of_the_logits(child: WorkerChild) -> None:
    greedy = Sampling(temperature=0, ignore_eos=True)
    got = child.answer(child.generate(prompt=PROMPT, max_tokens=3, logprobs=2, sampling=greedy))
    entries = [entry for delta in got.deltas for entry in delta.logprobs]
    assert [entry.id for entry in entries] == got.tokens()
    assert all(entry.logprob == entry.top[0][2] and entry.top[0][2] >= entry.top[1][2] for entry in entries)


@pytest.mark.parametrize("cut", [40, 4000])
def test_a_file_that_is_cut_short_is_refused(files: dict[str, Path], tmp_path: Path, cut: int) -> None:
    short = tmp_path / "short.bin"
    short.write_bytes(files["llama"].read_bytes()[:-cut])
    with worker_child(short, tmp_path / "log", threads=1) as child:
        message: Any = child.receive()
        assert isinstance(message, Failed)
        assert message.failure.exit == 65


def test_a_missing_library_is_one_line_with_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctransformers.llm", None)
    monkeypatch.setitem(sys.modules, "ctransformers", None)
    with pytest.raises(UnavailableError, match="ctransformers, which is not installed") as caught:
        open_model("old.bin", "llama", 64, 1)
    assert "lathe-llm[legacy]" in caught.value.hint
    assert "lathe convert" in caught.value.hint
