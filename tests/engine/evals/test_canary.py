"""The canary: every kind of silently wrong likelihood kills it, and a model that is merely coarse does not."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lathe.engine.connect import open_workbench
from lathe.engine.evals import canary
from lathe.engine.evals.canary import CanaryDied, check
from lathe.engine.generation import RenderedPrompt, Score, ScoreRequest, TokenLogprob
from lathe.engine.paths import Home
from lathe.engine.workbench import Workbench
from lathe.engine.worker.messages import LoadOptions, WorkerInfo
from lathe.quantize.plan import QuantizeOptions
from lathe.quantize.quantizer import quantize_gguf
from support.eval_model import TableModel

REPLACE = msgspec.structs.replace
Damage = Callable[[Any, ScoreRequest], Any]


async def _ids(bench: Any, part: str | tuple[int, ...], *, bos: bool) -> tuple[int, ...]:
    return tuple(await bench.tokenize("m", part, bos=bos)) if isinstance(part, str) else part


async def shifted(bench: Any, asked: ScoreRequest) -> list[Score]:
    """Each token gets the log-probability of the one before it."""
    context = await _ids(bench, asked.context, bos=True) or (0,)
    texts = [context[-1:] + (await _ids(bench, text, bos=False))[:-1] for text in asked.continuations]
    return await bench.score(REPLACE(asked, context=context[:-1], continuations=tuple(texts)))


async def context_cut(bench: Any, asked: ScoreRequest) -> list[Score]:
    """The last token before the continuation is lost."""
    return await bench.score(REPLACE(asked, context=(await _ids(bench, asked.context, bos=True))[:-1]))


async def no_beginning(bench: Any, asked: ScoreRequest) -> list[Score]:
    """Texts are scored without the token that begins them."""
    context = await _ids(bench, asked.context, bos=True)
    return await bench.score(REPLACE(asked, context=context[1:] if len(context) > 1 else context))


async def begun_twice(bench: Any, asked: ScoreRequest) -> list[Score]:
    """Two tokens that begin a text."""
    context = await _ids(bench, asked.context, bos=True)
    return await bench.score(REPLACE(asked, context=(*context[:1], *context) if context else (0, 0)))


async def context_ignored(bench: Any, asked: ScoreRequest) -> list[Score]:
    return await bench.score(REPLACE(asked, context=()))


async def end_lost(bench: Any, asked: ScoreRequest) -> list[Score]:
    """The last token of a continuation counts nothing."""
    scores = await bench.score(asked)
    return [REPLACE(one, logprob=math.fsum(one.token_logprobs[:-1]), token_logprobs=one.token_logprobs[:-1],
                    tokens=one.tokens - 1) for one in scores]  # fmt: skip


async def wrong_total(bench: Any, asked: ScoreRequest) -> list[Score]:
    """A mean where a sum belongs."""
    return [REPLACE(one, logprob=one.logprob / one.tokens) for one in await bench.score(asked)]


async def bits(bench: Any, asked: ScoreRequest) -> list[Score]:
    """Logarithms to base 2."""
    return [
        REPLACE(one, logprob=one.logprob / math.log(2), token_logprobs=tuple(x / math.log(2) for x in one.token_logprobs))  # noqa: E501
        for one in await bench.score(asked)
    ]  # fmt: skip


async def warm(bench: Any, asked: ScoreRequest) -> list[Score]:
    """As if logits had been divided by a temperature, and not normalised again."""
    return [
        REPLACE(one, logprob=one.logprob * 0.7, token_logprobs=tuple(x * 0.7 for x in one.token_logprobs))
        for one in await bench.score(asked)
    ]


async def turned(bench: Any, asked: ScoreRequest) -> list[Score]:
    """Answers in another order than the questions."""
    return list(reversed(await bench.score(asked)))


async def not_a_number(bench: Any, asked: ScoreRequest) -> list[Score]:
    scores = await bench.score(asked)
    return [REPLACE(one, logprob=math.nan, token_logprobs=(math.nan,) * one.tokens) for one in scores]


DAMAGES: list[Damage] = [
    shifted, context_cut, no_beginning, begun_twice, context_ignored, end_lost, wrong_total, bits, warm, turned,
    not_a_number,
]  # fmt: skip
MARKOV = [shifted, end_lost, wrong_total, bits, warm, turned, not_a_number]
"""What a model that sees one byte back can be hurt by."""


class Damaged:
    """A workbench whose scores go wrong in one way."""

    def __init__(self, bench: Any, damage: Damage | None = None, **own: Any) -> None:
        self._bench, self._damage = bench, damage
        self.__dict__.update(own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bench, name)

    async def score(self, asked: ScoreRequest) -> list[Score]:
        return await (self._damage(self._bench, asked) if self._damage else self._bench.score(asked))


async def test_a_sound_model_passes_exactly() -> None:
    assert await check(TableModel(), "m", "test") < 1e-6  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", MARKOV, ids=lambda one: one.__name__)
async def test_damage_is_seen_on_a_model_whose_likelihoods_are_known(damage: Damage) -> None:
    with pytest.raises(CanaryDied):
        await check(Damaged(TableModel(), damage), "m", "test")  # type: ignore[arg-type]


async def test_a_model_that_contradicts_itself_measures_nothing() -> None:
    class Restless(TableModel):
        turn = 0.0

        async def generate(self, request: Any) -> AsyncIterator[Any]:  # type: ignore[override]
            self.turn += 1.0
            async for delta in super().generate(request):
                yield REPLACE(delta, logprobs=tuple(self._moved(entry) for entry in delta.logprobs))

        def _moved(self, entry: TokenLogprob) -> TokenLogprob:
            top = tuple((token, text, logprob - self.turn) for token, text, logprob in entry.top)
            return REPLACE(entry, logprob=top[0][2], top=top)

    with pytest.raises(CanaryDied, match="move by"):
        await check(Restless(), "m", "test")  # type: ignore[arg-type]


# -- on the real model, as it is and coarse --------------------------------------------------------------------------
@pytest.fixture(params=["F16", "Q2_K"])
async def real(
    request: pytest.FixtureRequest, home: Path, embedded_gguf: Path, tmp_path: Path
) -> AsyncIterator[tuple[Workbench, str, WorkerInfo]]:
    path = embedded_gguf
    if request.param != "F16":
        path = tmp_path / f"tiny-{request.param}.gguf"
        quantize_gguf(embedded_gguf, path, QuantizeOptions(type=request.param))
    async with open_workbench(Home(home)) as workbench:
        state = await workbench.load(str(path), LoadOptions(threads=1))
        assert state.info is not None
        yield workbench, str(path), state.info


@pytest.mark.native
async def test_real_models_pass_and_damage_is_seen(real: tuple[Workbench, str, WorkerInfo]) -> None:
    workbench, model, info = real

    class Named:
        """Damages ask by another name."""

        def __getattr__(self, name: str) -> Any:
            return getattr(workbench, name)

        async def tokenize(self, _: str, text: str, special: bool = False, bos: bool = False) -> list[int]:
            return await workbench.tokenize(model, text, special, bos)

    assert await check(workbench, model, "test", info) < 0.5
    survived = []
    for damage in DAMAGES:
        try:
            await check(Damaged(Named(), damage), model, "test", info)  # type: ignore[arg-type]
        except CanaryDied:
            continue
        survived.append(damage.__name__)
    assert not survived

    async def other_template(*_: Any, **__: Any) -> RenderedPrompt:
        text = "USER: What does the fox do?\nASSISTANT:"
        return RenderedPrompt(text, tuple(await workbench.tokenize(model, text, bos=True)), "0" * 64)

    with pytest.raises(CanaryDied):
        await check(Damaged(workbench, render=other_template), model, "test", info)  # type: ignore[arg-type]

    async def twice(*arguments: Any, **options: Any) -> RenderedPrompt:
        rendered = await workbench.render(*arguments, **options)
        return REPLACE(rendered, tokens=(info.bos_token_id, info.bos_token_id, *rendered.tokens))

    with pytest.raises(CanaryDied, match="begins the text twice"):
        await check(Damaged(workbench, render=twice), model, "test", info)  # type: ignore[arg-type]


async def test_tokens_without_ids_are_compared_by_their_text() -> None:
    class Distant(TableModel):
        """As a remote server: no ids, and text with text only."""

        async def generate(self, request: Any) -> AsyncIterator[Any]:  # type: ignore[override]
            assert request.tokens is None
            async for delta in super().generate(request):
                yield REPLACE(delta, logprobs=tuple(map(self._nameless, delta.logprobs)))

        def _nameless(self, entry: TokenLogprob) -> TokenLogprob:
            return REPLACE(entry, id=-1, top=tuple((-1, text, logprob) for _, text, logprob in entry.top))

        async def tokenize(self, *_: Any, **__: Any) -> list[int]:
            raise AssertionError("a remote server may have no such route")

        async def score(self, request: ScoreRequest) -> list[Score]:
            assert isinstance(request.context, str)
            return await super().score(request)

    model = Distant()
    model.table = TableModel().table
    model.table[:, 127:] -= 50  # it says ASCII, whose characters are its tokens
    assert await check(model, "m", "test") < 1e-6  # type: ignore[arg-type]
    with pytest.raises(CanaryDied):
        await check(Damaged(model, bits), "m", "test")  # type: ignore[arg-type]


def test_nothing_is_allowed_beyond_what_the_model_moves() -> None:
    judge = canary._Canary(None, "m", "test").judge  # type: ignore[arg-type]
    assert judge({"whole": [0.1, -0.1]}, [0.05, -0.05]) == pytest.approx(0.1)
    for paths, noise in (({"whole": [0.1] * 4}, [0.001] * 9), ({"a": [0.0], "b": [1.0]}, [0.1]), ({"a": [0.0]}, [2.0])):
        with pytest.raises(CanaryDied):
            judge(paths, noise)
