"""Compare an original tokenizer with its conversion, and choose among candidates by what they do.

Invariant: a vocabulary that this module approved reads every ordinary probe exactly as the original does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from lathe.quantize.convert.conformance.child import Answer, Request, Trial
from lathe.quantize.convert.conformance.probe import NAUGHTY, ORDINARY
from lathe.quantize.errors import CheckpointError, QuantizeError

TIMEOUT_S = 600
MAX_EXAMPLES = 5
_KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""The child reads foreign files: it gets no keys and tokens from our environment."""

Candidate = dict[str, str | bool]


class Difference(msgspec.Struct, frozen=True):
    """A text that the two tokenizers cut differently; `converted` is None where llama.cpp aborted."""

    text: str
    original: list[int]
    converted: list[int] | None


class Conformance(msgspec.Struct, frozen=True, kw_only=True):
    """How well a converted tokenizer agrees with its original."""

    chosen: int = 0
    """Index of the candidate that agrees best."""
    texts: int = 0
    """Ordinary and naughty probes that were compared."""
    ordinary: tuple[Difference, ...] = ()
    naughty: tuple[Difference, ...] = ()
    """Differences on strange text, or that llama.cpp is known to make with this kind of tokenizer."""
    marked: tuple[Difference, ...] = ()
    """Texts with control tokens in them."""
    surrounded: Difference | None = None
    """A text with the tokens that are added around it, where the sides differ."""
    crashes: tuple[Difference, ...] = ()
    """Texts outside the vocabulary, on which llama.cpp aborts and the original gives its unknown token."""

    @property
    def agrees(self) -> bool:
        """Whether every ordinary text came out the same."""
        return not self.ordinary


def conform(
    gguf: Path,
    tokenizer: Path,
    candidates: Sequence[Candidate] = ({},),
    marked: Sequence[str] = (),
    *,
    excused: Callable[[Difference], bool] | None = None,
) -> Conformance:
    """Run both tokenizers over the probe text in a child process.

    `candidates` are sets of metadata that stand in for the file's; the first that agrees on ordinary text wins, else
    the one that agrees best. `marked` are texts with control tokens in them. `excused` tells which differences on
    ordinary text count as naughty. Raises `CheckpointError` when the original or every candidate cannot be loaded.
    """
    request = Request(
        gguf=str(gguf),
        tokenizer=str(tokenizer),
        probes=[*ORDINARY, *NAUGHTY],
        marked=list(marked),
        candidates=list(candidates),
        decisive=len(ORDINARY),
    )
    answer = _ask(request)
    if answer.error is not None:
        raise CheckpointError(f"{tokenizer} cannot be loaded: {answer.error}")
    results = [
        _compare(index, request, answer, trial, excused)
        for index, trial in enumerate(answer.trials)
        if trial.error is None
    ]
    if not results:
        reason = answer.trials[0].error
        raise CheckpointError(f"llama.cpp cannot load the converted tokenizer of {tokenizer.parent}: {reason}")
    return min(results, key=lambda result: (len(result.ordinary), len(result.naughty), result.chosen))


def _ask(request: Request) -> Answer:
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    command = [sys.executable, "-m", "lathe.quantize.convert.conformance.child"]
    try:
        done = subprocess.run(
            command,
            input=msgspec.json.encode(request),
            capture_output=True,
            env=environment | {"TOKENIZERS_PARALLELISM": "false"},
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise QuantizeError(f"comparing the tokenizers took longer than {TIMEOUT_S} s") from error
    if done.returncode != 0:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
        raise QuantizeError(f"the child that compares tokenizers ended with {done.returncode}: {last[0][:300]}")
    return msgspec.json.decode(done.stdout, type=Answer)


def _compare(
    index: int, request: Request, answer: Answer, trial: Trial, excused: Callable[[Difference], bool] | None
) -> Conformance:
    original = answer.original
    ordinary: list[Difference] = []
    naughty: list[Difference] = []
    crashes: list[Difference] = []
    for number, (text, expected, found) in enumerate(zip(request.probes, original.probes, trial.probes, strict=True)):
        if found == expected:
            continue
        difference = Difference(text, expected or [], found)
        if found is None and answer.unknown in difference.original:
            crashes.append(difference)
        elif number < len(ORDINARY) and not (excused and excused(difference)):
            ordinary.append(difference)
        else:
            naughty.append(difference)
    pairs = zip(request.marked, original.marked, trial.marked, strict=True)
    around = Difference(request.probes[0], original.surrounded or [], trial.surrounded)
    return Conformance(
        chosen=index,
        texts=len(request.probes),
        ordinary=tuple(ordinary),
        naughty=tuple(naughty),
        marked=tuple(Difference(text, one or [], other) for text, one, other in pairs if one != other),
        surrounded=around if around.original != around.converted else None,
        crashes=tuple(crashes),
    )
