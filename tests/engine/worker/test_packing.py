"""Packs of texts to score: each token once, every row to whom it belongs, nothing left behind, whatever the limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lathe.engine.generation import Sampling, ScoreRequest
from lathe.engine.native.batch import Batch
from lathe.engine.scheduler.ledger import Drop, Effect, Ledger
from lathe.engine.worker.backends.llama.packing import Packer, _tree
from lathe.engine.worker.backends.llama.scoring import Scoring
from lathe.engine.worker.messages import ScoreTexts
from support.worker_child import WorkerChild, worker_child

pytestmark = pytest.mark.native

WORDS = 11


class _Lexicon:
    """Ids are given as they are."""

    bos, eos = 0, 0

    def checked(self, tokens: tuple[int, ...]) -> list[int]:
        return list(tokens)


class _Ring:
    """Logits that follow from the whole text before them; refuses a token whose past is not what it should be."""

    def __init__(self, aborts: int = 0) -> None:
        self.texts: dict[int, list[int]] = {}
        self.aborts = aborts
        self.computed = 0
        self._rows: list[np.ndarray[Any, Any]] = []

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            assert isinstance(effect, Drop)
            self.texts.pop(effect.sequence, None)

    def decode(self, batch: Batch, flight: dict[int, int]) -> float | None:
        assert sum(flight.values()) == batch.n_tokens <= batch.capacity
        if self.aborts:
            self.aborts -= 1
            return None
        self._rows = []
        for index in range(batch.n_tokens):
            token, position = int(batch.token[index]), int(batch.position[index])
            mine = [batch.native.seq_id[index][k] for k in range(batch.native.n_seq_id[index])]
            past = {tuple(self.texts.setdefault(sequence, [])) for sequence in mine}
            assert len(past) == 1, "sequences that share a token have the same past"
            assert len(past.pop()) == position
            for sequence in mine:
                self.texts[sequence].append(token)
            if batch.output[index]:
                self._rows.append(_logits(self.texts[mine[0]]))
        self.computed += batch.n_tokens
        return 0.5

    def rows(self) -> np.ndarray[Any, Any]:
        return np.array(self._rows, np.float32).reshape(-1, WORDS)


def _logits(text: list[int]) -> np.ndarray[Any, Any]:
    return np.random.default_rng([len(text), *text]).normal(size=WORDS).astype(np.float32)


def _expected(context: list[int], continuation: list[int]) -> float:
    total, text = 0.0, list(context or [0])
    for token in continuation:
        row = _logits(text).astype(float)
        total += float(row[token] - np.log(np.exp(row).sum()))
        text.append(token)
    return total


tokens = st.lists(st.integers(0, 2), max_size=12)
questions = st.lists(
    st.tuples(tokens, st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=5),
              st.sampled_from(["ann", "bob"])),
    min_size=1, max_size=8,
)  # fmt: skip


def _work(number: int, question: tuple[list[int], list[list[int]], str]) -> Scoring:
    context, continuations, principal = question
    request = ScoreRequest(
        model="m", context=tuple(context), continuations=tuple(map(tuple, continuations)), principal=principal
    )
    return Scoring(number, request, _Lexicon(), 2000, (principal, (), None), 0.0)  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(questions, st.integers(1, 40), st.integers(1, 12), st.integers(0, 2))
def test_scores_are_those_of_each_text_alone(asked: Any, capacity: int, outputs: int, aborts: int) -> None:
    ring, ledger = _Ring(aborts), Ledger(256, 32)
    packer = Packer(ring, ledger, batch_tokens=capacity, max_outputs=outputs, sequences=32)  # type: ignore[arg-type]
    works = [_work(number, question) for number, question in enumerate(asked)]
    taken = [work for work in works if packer.takes(work, alone=True)]
    for work in taken:
        packer.add(work)
    done: list[Scoring] = []
    while packer:
        packed = packer.step()
        assert packed is not None
        done += packed.done
        assert not ring.texts, "nothing is left behind"
        assert sorted(ledger._free) == list(range(32))
        assert ledger.used == 0
    assert sorted(work.id for work in done) == sorted(work.id for work in taken)
    for work in done:
        context, continuations, _ = asked[work.id]
        wanted = [_expected(context, text) for text in continuations]
        assert [score.logprob for score in work.scores()] == pytest.approx(wanted, abs=1e-4)
        assert [score.tokens for score in work.scores()] == [len(text) for text in continuations]


@given(questions)
def test_every_token_of_a_tree_is_computed_once(asked: Any) -> None:
    works = [_work(number, (context, texts, "ann")) for number, (context, texts, _) in enumerate(asked)]
    runs = list(_tree(works))
    texts: dict[Any, list[int]] = {}
    for run in runs:
        for branch in run.branches:
            path = texts.setdefault(branch, [])
            assert len(path) == run.start, "a run comes after what it follows"
            path += run.tokens
    wanted = {branch: branch.sequence.tokens for work in works for branch in work.branches}
    assert texts == wanted
    prefixes = {tuple(text[: end + 1]) for text in wanted.values() for end in range(len(text))}
    assert sum(len(run.tokens) for run in runs) == len(prefixes)


def test_principals_take_turns() -> None:
    ring = _Ring()
    packer = Packer(ring, Ledger(256, 32), batch_tokens=8, max_outputs=8, sequences=32)  # type: ignore[arg-type]
    question = [1, 2, 0, 1, 2, 0], [[1], [2]]
    for number, principal in enumerate(["ann"] * 6 + ["bob"]):
        work = _work(number, ([*question[0][:5], number % 3], question[1], principal))
        assert packer.takes(work, alone=True)
        packer.add(work)
    order: list[int] = []
    while packer:
        packed = packer.step()
        assert packed is not None
        order += [work.id for work in packed.done]
    assert order.index(6) <= 1, "a flood of one key does not hold up another"


def test_what_begins_alike_goes_to_the_prefix_cache() -> None:
    packer = Packer(_Ring(), Ledger(4096, 32), batch_tokens=256, max_outputs=32, sequences=32)  # type: ignore[arg-type]
    shots = [1, 2] * 100
    first, second = (_work(number, ([*shots, number], [[1], [2]], "ann")) for number in (1, 2))
    assert packer.takes(first, alone=True)
    assert not packer.takes(second, alone=True)
    other = _work(3, ([*shots, 0], [[1], [2]], "bob"))
    assert packer.takes(other, alone=True), "what somebody else asked tells nothing"


def test_long_texts_wait_for_their_turn_where_others_run() -> None:
    packer = Packer(_Ring(), Ledger(4096, 32), batch_tokens=64, max_outputs=32, sequences=32)  # type: ignore[arg-type]
    assert not packer.takes(_work(1, ([0] * 100, [[1], [2]], "ann")), alone=False)
    assert packer.takes(_work(2, ([1] * 100, [[1], [2]], "ann")), alone=True)
    assert not packer.takes(_work(3, ([2] * 1100, [[1]], "ann")), alone=True)


# -- on the real model -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=[False, True], ids=["plain", "flash"])  # flash attention rounds to 16 bits
def worker(embedded_gguf: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    log = tmp_path_factory.mktemp("packing") / "log"
    with worker_child(
        embedded_gguf, log, slots=4, context=1024, threads=1, kv_type="f32", flash_attention=request.param
    ) as child:
        child.ready()
        yield child


def _score(worker: WorkerChild, context: Any, *continuations: Any) -> int:
    return worker.ask(ScoreTexts, request=ScoreRequest(model="m", context=context, continuations=continuations))


def test_packs_agree_with_the_model_reading_each_text_alone(worker: WorkerChild) -> None:
    asked = [
        (f"Q: What does {name} do?\nA:", (f" It reads {name}.", " It writes a file.", " Nothing", f" It closes {name}"))
        for name in ("os.path.join", "json.loads", "heapq.merge", "shutil.copy", "re.compile", "struct.pack")
    ]
    asked.append(("The module is long. " * 60, (" It ends here.", " It goes on.")))
    requests = [_score(worker, context, *texts) for context, texts in asked]
    sampling = Sampling(temperature=0, ignore_eos=True)
    beside = worker.generate(prompt="def f(", max_tokens=40, sampling=sampling)
    answers = worker.collect(*requests, beside)
    assert len(answers[beside].tokens()) == 40
    for number, (context, texts) in zip(requests, asked, strict=True):
        scores = answers[number].messages[0].scores
        for score, text in zip(scores, texts, strict=True):
            alone = worker.answer(
                worker.generate(prompt=context + text, max_tokens=0, echo=True, logprobs=0, cache_prompt=False)
            )
            echoed = [one.logprob for one in alone.deltas[0].prompt_logprobs[-score.tokens :]]
            assert score.token_logprobs == pytest.approx(echoed, abs=2e-2), text


def test_a_cancelled_text_ends_and_the_others_are_answered(worker: WorkerChild) -> None:
    requests = [_score(worker, f"text {n} " * 40, " a", " b") for n in range(12)]
    for number in requests[::3]:
        worker.cancel(number)
    answers = worker.collect(*requests)
    for index, number in enumerate(requests):
        if index % 3:
            assert len(answers[number].messages[0].scores) == 2
