"""Guesses ahead: the text is the one without them, and what was guessed is counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lathe.engine.generation import Message, Sampling
from lathe.engine.native.batch import Batch
from lathe.engine.scheduler.sequence import Sequence
from lathe.engine.worker.backends.llama.speculation import DraftModel, Lookup
from lathe.engine.worker.messages import Failed
from lathe.quantize.convert import convert_checkpoint
from support.families import RECIPES
from support.worker_child import Exchange, WorkerChild, worker_child

pytestmark = pytest.mark.native

REPEATING = "one = read('one')\ntwo = read('two')\nthree = read('three')\nfour = read('four')\nfive ="
PROMPTS = (REPEATING, "def add(a, b):\n", "import os\n\ndef main():\n    x =", "class Reader:\n    def __init__(self")
GREEDY = Sampling(temperature=0, ignore_eos=True)
OPTIONS: dict[str, Any] = {"context": 256, "slots": 4, "threads": 1}


@pytest.fixture(scope="module")
def plain(embedded_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerChild]:
    with worker_child(embedded_gguf, tmp_path_factory.mktemp("log") / "plain.log", **OPTIONS) as child:
        child.ready()
        yield child


@pytest.fixture(scope="module", params=["lookup", "model"])
def guessing(
    request: pytest.FixtureRequest, embedded_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerChild]:
    """A worker that guesses; as draft model the model itself, whose guesses are nearly always right."""
    draft = "lookup" if request.param == "lookup" else str(embedded_gguf)
    log = tmp_path_factory.mktemp("log") / "guessing.log"
    with worker_child(embedded_gguf, log, **OPTIONS, draft=draft) as child:
        child.ready()
        yield child


def answers(child: WorkerChild, prompts: tuple[str, ...] = PROMPTS, **fields: Any) -> list[Exchange]:
    requests = [child.generate(prompt=prompt, **fields) for prompt in prompts]
    got = child.collect(*requests)
    return [got[request] for request in requests]


def test_the_text_is_the_same(plain: WorkerChild, guessing: WorkerChild) -> None:
    for prompt in PROMPTS:
        fields: dict[str, Any] = {"prompt": prompt, "max_tokens": 64, "sampling": GREEDY}
        expected, found = (child.answer(child.generate(**fields)) for child in (plain, guessing))
        assert found.tokens() == expected.tokens()
        assert (found.text(), found.finish()) == (expected.text(), expected.finish())
    together = [[one.text() for one in answers(child, max_tokens=48, sampling=GREEDY)] for child in (plain, guessing)]
    assert together[1] == together[0]


@pytest.mark.parametrize("sampling", [Sampling(seed=11, temperature=0.7), Sampling(seed=2, repeat_penalty=1.3)])
def test_draws_are_those_of_the_same_seed(plain: WorkerChild, guessing: WorkerChild, sampling: Sampling) -> None:
    found = [[one.tokens() for one in answers(child, max_tokens=24, sampling=sampling)] for child in (plain, guessing)]
    # Several rows in a batch round otherwise than one: a draw may fall on the other side of an edge, seldom.
    assert sum(one == other for one, other in zip(*found, strict=True)) >= 3


def test_what_was_guessed_is_counted(plain: WorkerChild, guessing: WorkerChild) -> None:
    usage = guessing.answer(guessing.generate(prompt=REPEATING, max_tokens=64, sampling=GREEDY)).last.usage
    assert usage is not None
    assert 0 < usage.accepted_tokens <= usage.draft_tokens
    assert usage.accepted_tokens < usage.completion_tokens == 64
    guessing.until(lambda: bool(guessing.beats) and guessing.beats[-1].stats.accepted_tokens >= usage.accepted_tokens)
    without = plain.answer(plain.generate(prompt=REPEATING, max_tokens=8, sampling=GREEDY)).last.usage
    assert without is not None
    assert without.draft_tokens == 0, "nothing is guessed unless it is asked for"


def test_a_model_that_drafts_for_itself_is_nearly_always_right(
    embedded_gguf: Path, tmp_path: Path, plain: WorkerChild
) -> None:
    with worker_child(embedded_gguf, tmp_path / "log", **OPTIONS, draft=str(embedded_gguf)) as child:
        child.ready()
        got = child.answer(child.generate(prompt=PROMPTS[1], max_tokens=64, sampling=GREEDY))
        usage = got.last.usage
        assert usage is not None
        assert usage.accepted_tokens >= 0.9 * usage.draft_tokens > 0


def test_ends_fall_where_they_would(plain: WorkerChild, guessing: WorkerChild) -> None:
    whole = plain.text(prompt=REPEATING, max_tokens=64, sampling=GREEDY)
    stop = whole[30:35]
    for fields in (
        {"stop": (stop,), "max_tokens": 64},
        {"max_tokens": 7},
        {"max_tokens": 1},
        {"max_tokens": 9, "n": 3},
    ):
        found = [
            child.answer(child.generate(prompt=REPEATING, sampling=GREEDY, **fields)) for child in (plain, guessing)
        ]
        for index in range(fields.get("n", 1)):
            assert found[1].text(index) == found[0].text(index)
            assert found[1].tokens(index) == found[0].tokens(index)
            assert found[1].finish(index) == found[0].finish(index)
        assert found[1].last.stop_text == found[0].last.stop_text


def test_log_probabilities_stay_with_their_tokens(plain: WorkerChild, guessing: WorkerChild) -> None:
    found = []
    for child in (plain, guessing):
        got = child.answer(child.generate(prompt=REPEATING, max_tokens=24, sampling=GREEDY, logprobs=2))
        found.append([entry for delta in got.deltas for entry in delta.logprobs])
    assert [entry.id for entry in found[1]] == [entry.id for entry in found[0]]
    assert [entry.logprob for entry in found[1]] == pytest.approx([entry.logprob for entry in found[0]], abs=1e-2)


def test_the_cache_holds_only_what_was_said(plain: WorkerChild, guessing: WorkerChild) -> None:
    talk = (Message("user", "What does os.path.join do with the parts of a path?"),)
    texts = []
    for child in (plain, guessing):
        first = child.text(messages=talk, max_tokens=32, sampling=GREEDY)
        longer = (*talk, Message("assistant", first), Message("user", "And with none?"))
        second = child.answer(child.generate(messages=longer, max_tokens=32, sampling=GREEDY))
        assert second.last.usage is not None
        assert second.last.usage.cached_tokens > 0
        texts.append((first, second.text()))
    assert texts[1] == texts[0]


def test_cancel_and_newcomers_do_not_disturb(plain: WorkerChild, guessing: WorkerChild) -> None:
    expected = plain.text(prompt=PROMPTS[2] * 6, max_tokens=24, sampling=GREEDY)
    gone = guessing.generate(prompt=REPEATING, max_tokens=180, sampling=GREEDY)
    stays = guessing.generate(prompt=PROMPTS[2] * 6, max_tokens=24, sampling=GREEDY)
    guessing.cancel(gone)
    got = guessing.collect(gone, stays)
    assert got[gone].finish() == "cancelled"
    assert got[stays].text() == expected


def test_a_draft_of_another_vocabulary_is_refused(embedded_gguf: Path, tmp_path: Path) -> None:
    other = convert_checkpoint(RECIPES["llama2"].write(tmp_path / "other"), tmp_path / "other.gguf").output
    with worker_child(embedded_gguf, tmp_path / "log", **OPTIONS, draft=str(other)) as child:
        message = child.receive()
        assert isinstance(message, Failed)
        assert message.failure.code == "E_DRAFT"
        assert "lookup" in message.failure.hint


def test_a_draft_cache_that_fills_up_ends_the_guesses_and_no_more() -> None:
    """Two choices of one prompt: the model's own cache holds it once, that of the draft model twice."""

    class Cells:
        used = 0

        def try_decode(self, batch: Batch) -> int:
            if self.used + batch.n_tokens > 1000:
                return 1
            self.used += batch.n_tokens
            return 0

        def logits(self, rows: int) -> np.ndarray[Any, Any]:
            return np.zeros((rows, 50), np.float32)

        def clear(self, *, data: bool) -> None:
            self.used = 0

    drafting = DraftModel.__new__(DraftModel)
    drafting._size, drafting._batch, drafting._free, drafting._places = 50, Batch(512), [0, 1], {}
    drafting._context = Cells()  # type: ignore[assignment]
    first, second = (Sequence(1, list(range(600)), 50, queued_at=0.0, realm=()) for _ in range(2))
    assert drafting.guess({first: 4, second: 4}) == {first: [0]}
    assert drafting.guess({second: 4}) == {second: [0, 0, 0, 0]}


def test_lookup_repeats_what_followed() -> None:
    def sequence(*tokens: int) -> Sequence:
        return Sequence(1, list(tokens), 99, queued_at=0.0, realm=())

    lookup = Lookup(100)
    text = sequence(1, 2, 3, 4, 9, 1, 2, 3)
    assert lookup.guess({text: 3}) == {text: [4, 9, 1]}
    text.tokens.append(5)
    assert lookup.guess({text: 3}) == {}
    text.tokens += [1, 2, 3]
    assert lookup.guess({text: 1}) == {text: [5]}, "the newest occurrence counts"
    loop = sequence(7, 8, 7, 8, 7, 8)
    assert lookup.guess({loop: 5}) == {loop: [7, 8, 7, 8, 7]}
    assert lookup.guess({sequence(1, 2): 4}) == {}
    lookup.forget(text)
    lookup.forget(text)
