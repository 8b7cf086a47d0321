"""How to run a file: KV cache type x threads x batch x GPU layers, by successive halving.

Every way gets a short trial; the better half gets one twice as long, and so on, so most of the time goes to those that
may win. Pure but for the trials it is given. Invariant: no way that was dropped was faster, in the same round, than
one that was kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import msgspec
from lathe.engine.errors import LatheError
from lathe.engine.tune.trial import Timing, Way

_SHORTEST = (64, 16)
"""Prompt and generated tokens of the first round."""
_ROUNDS = 4
_LEFT = 2
"""Ways that the last round compares."""
_ANSWER = 4
"""A prompt is taken to be this many times as long as its answer."""

Try = Callable[[Way, int, int], Timing]
"""(way, prompt tokens, generated tokens)."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run a file, as far as it came."""

    label: str
    """The file's."""
    kv_type: str
    threads: int
    batch: int
    gpu_layers: int
    kld: float | None = None
    """Mean divergence with this KV cache; None where it was not measured."""
    kld_99_9: float | None = None
    prompt_tokens_per_s: float | None = None
    tokens_per_s: float | None = None
    load_s: float | None = None
    peak_bytes: int | None = None
    rounds: int
    """Trials it had; more for those that did well."""
    problem: str = ""
    """Why it cannot run here."""

    @property
    def way(self) -> Way:
        """As trials take it."""
        return Way(kv_type=self.kv_type, threads=self.threads, batch=self.batch, gpu_layers=self.gpu_layers)


def ways(
    kv_types: Sequence[str], threads: Sequence[int], batches: Sequence[int], gpu_layers: Sequence[int]
) -> list[Way]:
    """Every combination."""
    return [
        Way(kv_type=kv_type, threads=count, batch=batch, gpu_layers=layers)
        for kv_type, count, batch, layers in itertools.product(kv_types, threads, batches, gpu_layers)
    ]


def halve(
    label: str, candidates: Sequence[Way], attempt: Try, *, in_time: Callable[[int], bool] = lambda trials: True
) -> list[Run]:
    """Compare ways; the best first, those that failed last. What there was no time to try at all is not among them.

    Args:
        in_time: whether so many more trials fit; the first one always does.
    """
    runs = [
        Run(label=label, kv_type=way.kv_type, threads=way.threads, batch=way.batch, gpu_layers=way.gpu_layers, rounds=0)
        for way in candidates
    ]
    dropped: list[Run] = []
    for number in range(_ROUNDS):
        # A round is as long as all before it together.
        if number and (len(runs) < _LEFT or not in_time(2 * len(runs))):
            break
        prompt, generate = (size << number for size in _SHORTEST)
        tried: list[Run] = []
        for run in runs:
            if number or not tried or in_time(1):
                tried.append(_tried(run, attempt, prompt, generate))
        runs = tried
        dropped += [run for run in runs if run.problem]
        runs = sorted((run for run in runs if not run.problem), key=_seconds)
        if number < _ROUNDS - 1 and len(runs) > _LEFT:
            kept = max(_LEFT, -(-len(runs) // 2))
            dropped, runs = [*runs[kept:], *dropped], runs[:kept]
    return [*runs, *sorted(dropped, key=lambda run: (bool(run.problem), -run.rounds, _seconds(run)))]


def _tried(run: Run, attempt: Try, prompt: int, generate: int) -> Run:
    try:
        timing = attempt(run.way, prompt, generate)
    except LatheError as error:
        return msgspec.structs.replace(run, problem=error.message, rounds=run.rounds + 1)
    return msgspec.structs.replace(run, rounds=run.rounds + 1, **msgspec.structs.asdict(timing))


def _seconds(run: Run) -> float:
    """Of a nominal request per generated token: its share of the prompt, then itself."""
    if not run.tokens_per_s or not run.prompt_tokens_per_s:
        return float("inf")
    return _ANSWER / run.prompt_tokens_per_s + 1 / run.tokens_per_s
