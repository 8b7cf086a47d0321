"""Generated text against targets: equal, containing, matching, the same number, the same words.

Invariant: of several targets the best counts; nothing here reads anything but the item and the response.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable
from typing import Literal

import msgspec
from lathe.engine.errors import ConfigError
from lathe.engine.evals.metrics import options as given
from lathe.engine.evals.metrics.metric import Metric, Options, Statistics, verdict
from lathe.engine.evals.values import Item, Response, Task

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+]?\.\d+")


class ExactOptions(msgspec.Struct, frozen=True):
    normalize: Literal["none", "strip", "case", "squad"] = "strip"
    """`squad`: case, punctuation, articles and repeated whitespace do not count."""


class ContainsOptions(msgspec.Struct, frozen=True):
    mode: Literal["any", "all"] = "any"
    ignore_case: bool = True
    texts: tuple[str, ...] = ()
    """In place of the case's targets."""


class RegexOptions(msgspec.Struct, frozen=True):
    pattern: str
    group: int | None = None
    """Compare this group with the targets; None: a match is enough."""
    ignore_case: bool = False
    full: bool = False


class NumericOptions(msgspec.Struct, frozen=True):
    tolerance: float = 0.0
    relative: float = 0.0
    which: Literal["first", "last"] = "last"
    """Which number of the answer counts."""
    after: str | None = None
    """Regular expression before the number, such as `####`; None: anywhere."""


class LengthOptions(msgspec.Struct, frozen=True):
    minimum: int = 0
    maximum: int | None = None
    unit: Literal["words", "characters"] = "words"


def squad_normal(text: str) -> str:
    """Lower case without punctuation, articles and repeated whitespace, as SQuAD's evaluation does."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", kept).split())


_NORMAL: dict[str, Callable[[str], str]] = {
    "none": lambda text: text, "strip": str.strip, "case": lambda text: text.strip().casefold(), "squad": squad_normal,
}  # fmt: skip


def exact_match(name: str, task: Task, options: Options) -> Metric:
    """Whether the answer equals a target."""
    normal = _NORMAL[given.read(ExactOptions, name, options).normalize]
    return verdict(
        name, lambda item, response: normal(response.text) in {normal(target) for target in item.targets}
    )  # fmt: skip


def contains(name: str, task: Task, options: Options) -> Metric:
    """Whether a target (or every one) stands in the answer."""
    chosen = given.read(ContainsOptions, name, options)
    return verdict(name, lambda item, response: _found(chosen, item, response), needs_target=not chosen.texts)


def excludes(name: str, task: Task, options: Options) -> Metric:
    """Whether no target stands in the answer."""
    chosen = given.read(ContainsOptions, name, options)
    return verdict(name, lambda item, response: not _found(chosen, item, response), needs_target=not chosen.texts)


def _found(chosen: ContainsOptions, item: Item, response: Response) -> bool:
    fold = str.casefold if chosen.ignore_case else str
    text = fold(response.text)
    found = [fold(target) in text for target in chosen.texts or item.targets]
    return all(found) if chosen.mode == "all" else any(found)


def regex(name: str, task: Task, options: Options) -> Metric:
    """Whether the answer matches a pattern, or what the pattern captures equals a target."""
    if "pattern" not in options:
        raise ConfigError(f"metric {name!r} needs the option 'pattern'")
    chosen = given.read(RegexOptions, name, options)
    compiled = given.pattern(name, chosen.pattern, re.IGNORECASE if chosen.ignore_case else 0)
    if chosen.group is not None and not 0 <= chosen.group <= compiled.groups:
        raise ConfigError(f"metric {name!r}: the pattern has {compiled.groups} groups, not {chosen.group}")

    def judge(item: Item, response: Response) -> bool:
        text = response.text.strip()
        match = compiled.fullmatch(text) if chosen.full else compiled.search(text)
        if match is None or chosen.group is None:
            return match is not None
        return (match.group(chosen.group) or "").strip() in {target.strip() for target in item.targets}

    return verdict(name, judge, needs_target=chosen.group is not None)


def numbers(text: str) -> list[float]:
    """The numbers in a text; thousands may be separated by commas."""
    return [float(match.replace(",", "")) for match in _NUMBER.findall(text)]


def numeric(name: str, task: Task, options: Options) -> Metric:
    """Whether the answer's number equals the target's within a tolerance."""
    chosen = given.read(NumericOptions, name, options)
    if chosen.tolerance < 0 or chosen.relative < 0:
        raise ConfigError(f"metric {name!r}: a tolerance is not negative")
    marker = given.pattern(name, chosen.after) if chosen.after is not None else None

    def judge(item: Item, response: Response) -> bool:
        text = response.text
        if marker is not None:
            match = marker.search(text)
            if match is None:
                return False
            text = text[match.end() :]
        found = numbers(text)
        if not found:
            return False
        value = found[0 if chosen.which == "first" or marker is not None else -1]
        wanted = [number for target in item.targets for number in numbers(target)[-1:]]
        return any(math.isclose(value, right, rel_tol=chosen.relative, abs_tol=chosen.tolerance) for right in wanted)

    return verdict(name, judge)


def f1(name: str, task: Task, options: Options) -> Metric:
    """Overlap of words with the closest target, as SQuAD counts it."""
    given.none(name, options)

    def judge(item: Item, response: Response) -> Statistics:
        answer = squad_normal(response.text).split()
        return max(word_f1(answer, squad_normal(target).split()) for target in item.targets), 1.0

    return Metric(name=name, judge=judge, needs_target=True)


def word_f1(answer: list[str], target: list[str]) -> float:
    """Harmonic mean of precision and recall over words; two empty texts agree."""
    if not answer or not target:
        return float(answer == target)
    common = sum((Counter(answer) & Counter(target)).values())
    return 2 * common / (len(answer) + len(target))


def length(name: str, task: Task, options: Options) -> Metric:
    """Whether the answer's length is within bounds."""
    chosen = given.read(LengthOptions, name, options)

    def judge(_: Item, response: Response) -> bool:
        size = len(response.text.split()) if chosen.unit == "words" else len(response.text)
        return chosen.minimum <= size and (chosen.maximum is None or size <= chosen.maximum)

    return verdict(name, judge, needs_target=False)
