"""BLEU, chrF and TER by sacrebleu, ROUGE by rouge-score: the reference implementations, from the extra `eval`.

Corpus figures come from additive statistics, so that bootstrap intervals resample cases as sacrebleu's own do.
Invariant: over all cases the figure equals the library's corpus score; no answer, however long, holds up a run.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np
from lathe.engine.errors import DataError, UnavailableError
from lathe.engine.evals.metrics import options as given
from lathe.engine.evals.metrics.metric import Metric, Options, Statistics, Sums
from lathe.engine.evals.values import Item, Response, Task

MAX_TER_WORDS = 300
"""Beyond, sacrebleu's search for moved phrases takes from seconds to minutes for one answer."""


class BleuOptions(msgspec.Struct, frozen=True):
    tokenize: Literal["13a", "char", "intl", "none"] = "13a"
    lowercase: bool = False


class ChrfOptions(msgspec.Struct, frozen=True):
    word_order: int = 0
    """2: chrF++."""


class RougeOptions(msgspec.Struct, frozen=True):
    stemmer: bool = False


def bleu(name: str, task: Task, options: Options) -> Metric:
    """Corpus BLEU, 0 to 100."""
    chosen = given.read(BleuOptions, name, options)
    tokenizer = chosen.tokenize
    return _corpus(name, _sacrebleu().BLEU(tokenize=tokenizer, lowercase=chosen.lowercase, effective_order=False))


def chrf(name: str, task: Task, options: Options) -> Metric:
    """Corpus chrF2 (or chrF2++), 0 to 100."""
    return _corpus(name, _sacrebleu().CHRF(word_order=given.read(ChrfOptions, name, options).word_order))


def ter(name: str, task: Task, options: Options) -> Metric:
    """Translation edit rate: edits per reference word, in per cent; lower is better."""
    given.none(name, options)
    return msgspec.structs.replace(_corpus(name, _sacrebleu().TER(), MAX_TER_WORDS), better="lower")


def rouge1(name: str, task: Task, options: Options) -> Metric:
    """ROUGE-1 F-measure with the closest target, 0 to 1."""
    return _rouge("rouge1", name, options)


def rouge2(name: str, task: Task, options: Options) -> Metric:
    """ROUGE-2 F-measure with the closest target, 0 to 1."""
    return _rouge("rouge2", name, options)


def rouge_l(name: str, task: Task, options: Options) -> Metric:
    """ROUGE-L F-measure with the closest target, 0 to 1."""
    return _rouge("rougeL", name, options)


def _rouge(kind: str, name: str, options: Options) -> Metric:
    chosen = given.read(RougeOptions, name, options)
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        raise _missing("ROUGE", "rouge-score") from None
    scorer = rouge_scorer.RougeScorer([kind], use_stemmer=chosen.stemmer)

    def score(target: str, answer: str) -> float:
        if kind == "rougeL":
            return lcs_f(*(scorer._tokenizer.tokenize(text) for text in (target, answer)))
        return float(scorer.score(target, answer)[kind].fmeasure)

    def judge(item: Item, response: Response) -> Statistics:
        return max(score(target, response.text) for target in item.targets), 1.0

    return Metric(name=name, judge=judge, needs_target=True)


def lcs_f(target: list[str], answer: list[str]) -> float:
    """ROUGE-L of tokens: what rouge-score computes, whose table of all pairs takes minutes for long answers.

    The longest common subsequence comes from Hyyro's bit-vectors: a big integer instead of each row of the table.
    """
    places: dict[str, int] = {}
    for place, token in enumerate(target):
        places[token] = places.get(token, 0) | 1 << place
    full = (1 << len(target)) - 1
    row = full
    for token in answer:
        matched = row & places.get(token, 0)
        row = ((row + matched) | (row - matched)) & full
    common = len(target) - row.bit_count()
    return 2 * common / (len(target) + len(answer)) if common else 0.0


def _corpus(name: str, scorer: Any, most_words: int | None = None) -> Metric:
    def judge(item: Item, response: Response) -> Statistics:
        for text in (response.text, *item.targets) if most_words is not None else ():
            if (words := len(text.split())) > most_words:  # type: ignore[operator]
                raise DataError(
                    f"metric {name!r} takes too long for {words} words (at most {most_words})",
                    hint="lower max_tokens, or use chrf or rougeL",
                )
        rows = scorer._extract_corpus_statistics([response.text], [[target] for target in item.targets])
        return tuple(float(value) for value in rows[0])

    def combine(sums: Sums) -> Sums:
        flat = sums.reshape(-1, sums.shape[-1])
        # TER's statistics are floats, the others' counts: integers let sacrebleu compare them exactly.
        whole = flat.astype(np.int64) if np.array_equal(flat, np.round(flat)) else flat
        scores = [float(scorer._aggregate_and_compute([row.tolist()]).score) for row in whole]
        return np.asarray(scores).reshape(sums.shape[:-1])

    return Metric(name=name, judge=judge, combine=combine, needs_target=True)


def _sacrebleu() -> Any:
    try:
        import sacrebleu.metrics
    except ImportError:
        raise _missing("BLEU, chrF and TER", "sacrebleu") from None
    return sacrebleu.metrics


def _missing(what: str, package: str) -> UnavailableError:
    return UnavailableError(f"{what} need {package}, which is not installed", hint="install `lathe-llm[eval]`")
