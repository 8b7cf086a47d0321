"""Metrics: known answers, the reference libraries, and the edges of language."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from lathe.engine.errors import ConfigError, DataError
from lathe.engine.evals.metrics.metric import Metric
from lathe.engine.evals.metrics.overlap import lcs_f
from lathe.engine.evals.metrics.registry import metrics_of
from lathe.engine.evals.values import Item, Response, Task
from lathe.engine.generation import Score


def _metric(kind: str, name: str, /, **options: Any) -> Metric:
    entry: Any = {name: options} if options else name
    return metrics_of(Task(id="t", kind=kind, cases=(), metrics=(entry,)))[0]  # type: ignore[arg-type]


def _item(*targets: str, kind: str = "generate", **fields: Any) -> Item:
    return Item(task="t", case="c", kind=kind, targets=targets, **fields)  # type: ignore[arg-type]


def _right(metric: Metric, text: str, *targets: str, **response: Any) -> bool:
    statistics = metric.judge(_item(*targets, stop=("END",)), Response(text=text, **response))
    assert statistics is not None
    assert statistics[1] == 1
    return bool(statistics[0])


def test_choice_metrics_count_as_the_harness_does() -> None:
    item = _item(kind="choice", continuations=(" yes", " certainly not", " ñandú"), gold=(1,))
    scores = tuple(Score(value, 3, False) for value in (-6.0, -7.5, -4.0))
    response = Response(scores=scores)
    # by sum the third wins, by characters -2.0, -0.58, -0.8 the second, by bytes -2.0, -0.58, -0.57 the third
    assert _metric("choice", "acc").judge(item, response) == (0, 1)
    assert _metric("choice", "acc_norm").judge(item, response) == (1, 1)
    assert _metric("choice", "acc_bytes").judge(item, response) == (0, 1)
    shares = np.exp([-6.0, -7.5, -4.0]) / np.exp([-6.0, -7.5, -4.0]).sum()
    brier = _metric("choice", "brier").judge(item, response)
    assert brier is not None
    assert brier[0] == pytest.approx(shares[0] ** 2 + (1 - shares[1]) ** 2 + shares[2] ** 2)
    margin = _metric("choice", "margin").judge(item, response)
    assert margin is not None
    assert margin[0] == pytest.approx(-7.5 / 13 + 4.0 / 5)


def test_of_equal_likelihoods_the_first_wins() -> None:
    item = _item(kind="choice", continuations=(" a", " b"), gold=(1,))
    assert _metric("choice", "acc").judge(item, Response(scores=(Score(-1, 1, True), Score(-1, 1, True)))) == (0, 1)


def test_perplexity_counts_tokens_words_and_bytes() -> None:
    item = _item(kind="perplexity", context="two wörds")
    response = Response(scores=(Score(-4.0, 3, False), Score(-2.0, 1, False)))
    for name, wanted in (
        ("perplexity", math.exp(6 / 4)), ("word_perplexity", math.exp(6 / 2)), ("byte_perplexity", math.exp(6 / 10)),
        ("bits_per_byte", 6 / 10 / math.log(2)),
    ):  # fmt: skip
        metric = _metric("perplexity", name)
        statistics = metric.judge(item, response)
        assert statistics is not None
        assert metric.of(statistics) == pytest.approx(wanted)
        assert metric.better == "lower"


@pytest.mark.parametrize(
    ("name", "options", "text", "targets", "right"),
    [
        ("exact_match", {}, " Paris\n", ("Paris",), True),
        ("exact_match", {}, "paris", ("Paris",), False),
        ("exact_match", {"normalize": "none"}, " Paris", ("Paris",), False),
        ("exact_match", {"normalize": "case"}, "STRASSE", ("straße",), True),
        ("exact_match", {"normalize": "squad"}, "The Eiffel-Tower!", ("eiffeltower",), True),
        ("exact_match", {}, "b", ("a", "b"), True),
        ("contains", {}, "it is PARIS.", ("paris",), True),
        ("contains", {"mode": "all"}, "a b", ("a", "c"), False),
        ("contains", {"texts": ["x"]}, "box", (), True),
        ("excludes", {"texts": ["secret-canary"]}, "Secret-Canary", (), False),
        ("regex", {"pattern": r"^\d+$"}, "12", (), True),
        ("regex", {"pattern": r"is (\w+)", "group": 1}, "it is blue", ("blue",), True),
        ("regex", {"pattern": r"is (\w+)", "group": 1}, "it is blue", ("red",), False),
        ("regex", {"pattern": "a", "full": True}, "aa", (), False),
        ("numeric", {}, "so 3 and 4 make 1,234.50", ("1234.5",), True),
        ("numeric", {}, "the answer is 7.", ("7",), True),
        ("numeric", {}, "no number", ("7",), False),
        ("numeric", {"tolerance": 0.1}, "3.05", ("3",), True),
        ("numeric", {"relative": 0.01}, "102", ("100",), False),
        ("numeric", {"after": "####"}, "1 2 #### -5 6", ("-5",), True),
        ("numeric", {"after": "####"}, "-5", ("-5",), False),
        ("numeric", {"which": "first"}, "8 then 9", ("8",), True),
        ("length", {"maximum": 2}, "one two three", (), False),
        ("length", {"unit": "characters", "minimum": 3}, "abc", (), True),
        ("json", {}, '```json\n{"a": 1}\n```', (), True),
        ("json", {}, '{"a": NaN}', (), False),
        ("json", {}, '{"a": 1, "a": 2}', (), False),
        ("json", {}, 'Here: {"a": 1}', (), False),
        ("json", {"fence": False}, "```\n1\n```", (), False),
        ("json", {"keys": ["a", "b"]}, '{"a": 1}', (), False),
        ("json", {}, "[" * 100_000, (), False),
        ("tool_call", {}, '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>',
         ('{"name": "f", "arguments": {"x": 1}}',), True),
        ("tool_call", {}, '{"name": "f", "arguments": "{\\"x\\": 1}"}',
         ('{"name": "f", "arguments": {"x": 1}}',), True),
        ("tool_call", {}, '{"name": "f", "arguments": {"x": 2}}', ('{"name": "f", "arguments": {"x": 1}}',), False),
        ("tool_call", {"arguments": False}, '{"name": "f"}', ('{"name": "f", "arguments": {"x": 1}}',), True),
        ("refusal", {}, "I\u2019m sorry, but I can't help with that.", (), True),
        ("refusal", {}, "Sure! First, you cannot skip step one.", (), False),
        ("refusal", {"expected": False}, "Of course: 42.", (), True),
        ("refusal", {}, "", (), False),
        ("no_template_tokens", {}, "fine", (), True),
        ("no_template_tokens", {}, "fine<|im_end|>", (), False),
        ("no_template_tokens", {}, "  ", (), False),
        ("wordlist", {"words": ["damn", "c++"]}, "condamned", (), True),
        ("wordlist", {"words": ["damn", "c++"]}, "I know C++!", (), False),
    ],
)  # fmt: skip
def test_texts_are_judged(name: str, options: dict[str, Any], text: str, targets: tuple[str, ...], right: bool) -> None:
    assert _right(_metric("generate", name, **options), text, *targets) is right


def test_stopping_is_ending_by_itself_without_the_stop_string() -> None:
    metric = _metric("generate", "stopped")
    assert _right(metric, "one", finish="stop")
    assert not _right(metric, "one", finish="length")
    assert not _right(metric, "one END two", finish="stop")


def test_f1_is_squads() -> None:
    metric = _metric("generate", "f1")
    statistics = metric.judge(_item("the cat sat", "dogs"), Response(text="A cat ran"))
    assert statistics == (pytest.approx(0.5), 1.0)
    assert metric.judge(_item("the"), Response(text="an")) == (1.0, 1.0), "two texts of articles only agree"


def test_json_schema() -> None:
    pytest.importorskip("jsonschema_rs")
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]}
    metric = _metric("generate", "json_schema", schema=schema)
    assert _right(metric, '{"n": 2}')
    assert not _right(metric, '{"n": 0}')
    assert not _right(metric, "n")
    with pytest.raises(ConfigError, match="not a valid schema"):
        _metric("generate", "json_schema", schema={"type": "no-such-type"})


ANSWERS = ["the cat sat on the mat", "a completely different sentence here", "I like tea , really", ""]
TARGETS = [["the cat is on the mat", "there is a cat on the mat"], ["another sentence here", "x y z"],
           ["I like tea really", "tea I like"], ["something", "else"]]  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), [("bleu", "BLEU"), ("chrf", "CHRF"), ("ter", "TER")])
def test_corpus_figures_are_sacrebleus(name: str, kind: str) -> None:
    metrics = pytest.importorskip("sacrebleu.metrics")
    metric = _metric("generate", name)
    rows = [metric.judge(_item(*targets), Response(text=text)) for text, targets in zip(ANSWERS, TARGETS, strict=True)]
    ours = metric.combine(np.asarray(rows, dtype=np.float64).sum(axis=0, keepdims=True))[0]
    theirs = getattr(metrics, kind)().corpus_score(ANSWERS, [list(column) for column in zip(*TARGETS, strict=True)])
    assert ours == pytest.approx(theirs.score, abs=1e-9)
    assert theirs.score > 0


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_rouge_scores(name: str) -> None:
    scorers = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = scorers.RougeScorer([name])
    for text, targets in zip(ANSWERS, TARGETS, strict=True):
        wanted = max(scorer.score(target, text)[name].fmeasure for target in targets)
        assert _metric("generate", name).judge(_item(*targets), Response(text=text)) == (pytest.approx(wanted), 1.0)


def test_the_longest_common_subsequence_is_rouge_scores() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    chance = random.Random(1)
    for _ in range(300):
        left, right = ([chance.choice("abcde") for _ in range(chance.randrange(1, 30))] for _ in range(2))
        assert lcs_f(left, right) == pytest.approx(scorer._score_lcs(left, right).fmeasure)
    assert lcs_f([], ["a"]) == lcs_f(["a"], []) == 0.0


LONG = 60_000
FLOODS = {
    "blanks in a call": "<tool_call>" + " " * LONG, "calls": "<tool_call>" * (LONG // 10),
    "fences": "```\n" * (LONG // 4), "an open fence": "```json\n" + "\n" * LONG, "braces": "{" * LONG,
    "marks": "a@." * (LONG // 3),
    "digits": "1," * (LONG // 2), "words": "word " * (LONG // 5), "one word": "x" * LONG,
}  # fmt: skip


@pytest.mark.parametrize("text", FLOODS.values(), ids=FLOODS)
@pytest.mark.parametrize(
    "name",
    ["tool_call", "json", "rougeL", "rouge2", "f1", "numeric", "contains", "bleu", "chrf", "toxicity", "refusal"],
)
def test_no_answer_holds_up_a_run(name: str, text: str) -> None:
    if name in ("bleu", "chrf", "rougeL", "rouge2"):
        pytest.importorskip("rouge_score")
    judged = _metric("generate", name).judge(_item("something else"), Response(text=text))
    assert judged is not None
    assert all(math.isfinite(value) for value in judged)


def test_edit_rate_is_refused_where_it_would_take_minutes() -> None:
    pytest.importorskip("sacrebleu")
    metric = _metric("generate", "ter")
    with pytest.raises(DataError, match="takes too long for 301 words"):
        metric.judge(_item("word"), Response(text="word " * 301))
    assert metric.judge(_item("word"), Response(text="word")) is not None


def test_json_stands_in_its_fence_or_call_and_nowhere_else() -> None:
    right = ['{"a": 1}', ' ```json\n{"a": 1}\n``` ', '```\n{"a": 1}```', '``` json \n{"a": 1}\n\n```']
    assert [_right(_metric("generate", "json", keys=["a"]), text) for text in right] == [True] * 4
    wrong = ['```json {"a": 1}```', '```json\n{"a": 1}', 'x ```\n{"a": 1}```', '```yaml\n{"a": 1}\n```', "``````"]
    assert [_right(_metric("generate", "json", keys=["a"]), text) for text in wrong] == [False] * 5
    call = '{"name": "f", "arguments": {}}'
    for text in (call, f"<tool_call>{call}</tool_call>", f"So: <tool_call>\n {call} \n</tool_call> and more"):
        assert _right(_metric("generate", "tool_call"), text, call)
    assert not _right(_metric("generate", "tool_call"), f"<tool_call>{call}", call)


def test_times_are_means_or_shares_within_a_bound() -> None:
    fast, slow = Response(ttft_s=0.1, tokens_per_s=None), Response(ttft_s=0.9, tokens_per_s=50.0)
    plain, bounded = _metric("generate", "ttft_s"), _metric("generate", "ttft_s", maximum=0.5)
    assert plain.timed
    assert [plain.judge(_item(), response) for response in (fast, slow)] == [(0.1, 1.0), (0.9, 1.0)]
    assert [bounded.judge(_item(), response) for response in (fast, slow)] == [(1.0, 1.0), (0.0, 1.0)]
    assert _metric("generate", "tokens_per_s").judge(_item(), fast) is None
    assert _metric("generate", "tokens_per_s", minimum=1).judge(_item(), fast) == (0.0, 1.0), "unmeasured is not fast"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("regex", {}, "needs the option 'pattern'"),
        ("regex", {"pattern": "("}, "is no regular expression"),
        ("regex", {"pattern": "a", "group": 3}, "has 0 groups"),
        ("numeric", {"tolerance": -1}, "not negative"),
        ("numeric", {"tolerance": "x"}, "Expected `float`"),
        ("exact_match", {"normalize": "lower"}, "Invalid enum value 'lower'"),
        ("f1", {"x": 1}, "has no option 'x' .it has none"),
        ("wordlist", {}, "needs `words` or a `file`"),
        ("wordlist", {"file": "/nonexistent"}, "No such file"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _metric("generate", name, **options)


def test_the_same_metric_twice_needs_two_names() -> None:
    twice: Any = ({"contains": {"texts": ["a"]}}, {"contains": {"texts": ["b"]}})
    with pytest.raises(ConfigError, match="given twice"):
        metrics_of(Task(id="t", kind="generate", cases=(), metrics=twice))
    named: Any = ({"contains": {"texts": ["a"], "as": "has_a"}}, {"contains": {"texts": ["b"], "as": "has_b"}})
    assert [m.name for m in metrics_of(Task(id="t", kind="generate", cases=(), metrics=named))] == ["has_a", "has_b"]
