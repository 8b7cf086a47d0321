"""Suites: what is valid loads into items; every mistake and every bad case is placed and named before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lathe.engine.errors import ConfigError, DataError, MissingError
from lathe.engine.evals import shipped
from lathe.engine.evals import suite as suites
from lathe.engine.evals.metrics.text import squad_normal, word_f1
from lathe.engine.evals.values import Item

GOOD = """\
schema: 1
name: capitals
version: "2"
tags: [geo]
seed: 7
variables: {style: short}
tasks:
  - id: pick
    kind: choice
    prompt: "The capital of {{ country }} is"
    metrics: [acc, acc_norm, brier]
    primary: acc_norm
    transforms: [reorder, typo]
    tags: [quick]
    cases:
      - {country: France, choices: [Paris, Rome, Lima], answer: Paris, tags: [critical]}
      - {country: Peru, choices: [Paris, Rome, Lima], answer: C}
      - {id: it, country: Italy, choices: [Paris, Rome, Lima], answer: 1}
  - id: say
    kind: generate
    chat: true
    system: "Answer in {{ style }}."
    prompt: "What is the capital of {{ country }}?"
    answer: capital
    repeats: 2
    fewshot: {count: 1, examples: [{country: Chad, capital: N'Djamena}]}
    metrics: [{exact_match: {normalize: squad}}, {contains: {as: mentions}}]
    cases: [{country: France, capital: Paris}, {country: Peru, capital: [Lima, Ciudad de los Reyes]}]
gates: ["acc lower bound > 0.2"]
"""


def _write(folder: Path, text: str, name: str = "suite.yaml") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def _items(folder: Path, text: str, **options: object) -> list[Item]:
    return list(suites.load(_write(folder, text), **options).items)  # type: ignore[arg-type]


def test_a_good_suite_becomes_items(tmp_path: Path) -> None:
    loaded = suites.load(_write(tmp_path, GOOD))
    pick, say = loaded.tasks
    assert [metric.name for metric in pick.metrics] == ["acc", "acc_norm", "brier"]
    assert pick.primary.name == "acc_norm"
    assert [metric.name for metric in say.metrics] == ["exact_match", "mentions"]
    first, reordered, typo, *_ = pick.items
    assert first.context == "The capital of France is"
    assert first.continuations == (" Paris", " Rome", " Lima")
    assert first.gold == (0,)
    assert first.targets == ("Paris",)
    assert first.tags == ("geo", "quick", "critical")
    assert reordered.continuations == (" Rome", " Lima", " Paris")
    assert reordered.gold == (2,)
    assert typo.variant == "typo"
    assert [item.gold for item in pick.items if not item.variant] == [(0,), (2,), (1,)]
    assert [item.case for item in pick.items[::3]] == ["00001", "00002", "it"]
    assert [message.content for message in say.items[0].messages] == [
        "Answer in short.", "What is the capital of Chad?", "N'Djamena", "What is the capital of France?",
    ]  # fmt: skip
    assert [item.sampling.seed for item in say.items] == [7, 8, 7, 8]
    assert say.items[2].targets == ("Lima", "Ciudad de los Reyes")


def test_equal_suites_have_equal_hashes_and_any_change_shows(tmp_path: Path) -> None:
    path = _write(tmp_path, GOOD)
    loaded = suites.load(path)
    assert suites.load(path).sha256 == loaded.sha256
    assert suites.load(path, variables={"style": "long"}).sha256 != loaded.sha256
    assert suites.load(path, seed=8).sha256 != loaded.sha256
    assert suites.load(_write(tmp_path, GOOD.replace("Lima, Ciudad", "Lima, La Ciudad"))).sha256 != loaded.sha256


def test_limits_and_tags_choose_cases(tmp_path: Path) -> None:
    assert {item.case for item in _items(tmp_path, GOOD, limit=1)} == {"00001"}
    assert {item.label for item in _items(tmp_path, GOOD, tags=("critical",)) if not item.variant} == {"pick/00001"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("kind: choice", "kind: chioce"), "suite.yaml:9:5: kind: Invalid enum value 'chioce'"),
        (("primary: acc_norm", "primry: acc_norm"), "suite.yaml:12:5: task 'pick' has no field 'primry'; did you mean"),
        (("[acc, acc_norm, brier]", "[acc, acc_nrom]"), "suite.yaml:11:5: no metric 'acc_nrom' of kind choice; did"),
        (("primary: acc_norm", "primary: acc_byte"), "suite.yaml:12:5: the task does not measure 'acc_byte'"),
        (("[reorder, typo]", "[typos]"), "suite.yaml:13:18: unknown transform 'typos'; did you mean 'typo'?"),
        (("{{ country }} is", "{{ country is"), "suite.yaml:10:5: prompt: not a valid template"),
        (("id: say", "id: pick"), "suite.yaml:19:5: task 'pick' is given twice"),
        (("seed: 7", "seed: -7"), "suite.yaml:5:1: seed: Expected `int` >= 0"),
        (("lower bound > 0.2", "lowr bound > 0.2"), "suite.yaml:29:9: 'acc lowr bound > 0.2' is not a gate"),
        (("normalize: squad", "normalise: squad"), "metric 'exact_match' has no option 'normalise'; did you mean"),
        (("name: capitals", "nmae: capitals"), "suite.yaml:2:1: a suite has no field 'nmae'; did you mean 'name'?"),
        (("count: 1", "count: 2"), "suite.yaml:26:25: 2 examples are wanted, 1 given"),
        (("schema: 1", "schema: 9"), "suite.yaml:1:1: schema 9 is not known; this Lathe reads 1"),
        (("seed: 7", "seed: 7\nseed: 8"), "suite.yaml:6:1: 'seed' is given twice"),
    ],
)  # fmt: skip
def test_mistakes_are_placed(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert GOOD.count(change[0]) == 1
    with pytest.raises(ConfigError) as caught:
        suites.load(_write(tmp_path, GOOD.replace(*change)))
    assert message in caught.value.message


def test_every_bad_case_is_named_and_none_runs_unless_they_are_skipped(tmp_path: Path) -> None:
    lines = [
        json.dumps({"country": "France", "choices": ["Paris", "Rome"], "answer": "Paris"}),
        "{not json",
        json.dumps({"country": "Peru", "choices": ["Lima"], "answer": 0}),
        json.dumps({"choices": ["a", "b"], "answer": 0}),
        json.dumps({"country": "Chad", "choices": ["a", "b"], "answer": 7}),
        json.dumps(["no", "object"]),
        json.dumps({"country": "X", "choices": ["a", " "], "answer": 0}),
        '{"country": "\\ud800", "choices": ["a", "b"], "answer": 0}',
        '{"country": NaN, "choices": ["a", "b"], "answer": 0}',
        "[" * 100_000,
    ]
    (tmp_path / "cases.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode() + b'\n{"country": "\xff"}\n')
    text = """\
name: broken
tasks:
  - {id: t, kind: choice, prompt: "The capital of {{ country }} is", cases: {file: cases.jsonl}}
"""
    path = _write(tmp_path, text)
    with pytest.raises(DataError) as caught:
        suites.load(path)
    named = caught.value.message.splitlines()
    assert caught.value.code == "E_BAD_CASES"
    assert {int(line.split("cases.jsonl:")[1].split(":")[0]) for line in named} == set(range(2, 12))
    assert "'country' is undefined" in caught.value.message
    assert "the answer 7 is outside the 2 choices" in caught.value.message
    assert [item.context for item in suites.load(path, skip_bad=True).items] == ["The capital of France is"]


@pytest.mark.parametrize(
    "value", ["NaN", ".inf", "-1", "0", "2147483648.5", "9223372036854775808", "true", "'x'", "[1]"]
)
@pytest.mark.parametrize("field", ["max_tokens", "repeats", "limit"])
def test_extreme_numbers_are_refused(tmp_path: Path, field: str, value: str) -> None:
    text = f"name: n\ntasks:\n  - {{id: t, kind: generate, cases: [{{prompt: p, answer: a}}], {field}: {value}}}\n"
    with pytest.raises(ConfigError, match=rf"suite.yaml:3:\d+: {field}: "):
        _items(tmp_path, text)


@pytest.mark.parametrize("setting", ["temperature: -1", "top_p: 2", "min_p: .nan", "seed: 4294967296", "grammar: 1"])
def test_extreme_sampling_is_refused(tmp_path: Path, setting: str) -> None:
    text = f"name: n\ntasks:\n- {{id: t, kind: generate, cases: [{{prompt: p, answer: a}}], sampling: {{{setting}}}}}\n"
    with pytest.raises(ConfigError, match=r"suite.yaml:3:\d+: "):
        _items(tmp_path, text)


def test_templates_have_no_way_out(tmp_path: Path) -> None:
    for hostile in ("{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}", "{% include '/etc/passwd' %}"):
        text = f"name: n\ntasks:\n- {{id: t, kind: generate, prompt: {json.dumps(hostile)}, cases: [{{answer: a}}]}}\n"
        with pytest.raises((DataError, ConfigError)):
            _items(tmp_path, text)


def test_files_come_by_variable_from_beside_the_suite_or_embedded(tmp_path: Path) -> None:
    text = "name: n\ntasks:\n  - {id: t, kind: perplexity, prompt: '{{ text }}', cases: {file: '${where}'}}\n"
    with pytest.raises(MissingError, match=r"suite.yaml:3:\d+: no variable 'where' is set"):
        _items(tmp_path, text)
    with pytest.raises(MissingError, match="no such file of cases"):
        _items(tmp_path, text, variables={"where": "none.txt"})
    assert len(_items(tmp_path, text, variables={"where": "embedded:valid.txt"})) > 20
    (tmp_path / "mine.txt").write_text("one\n\ntwo\n")
    assert [item.context for item in _items(tmp_path, text, variables={"where": "mine.txt"})] == ["one\n\ntwo\n"]


def test_distractors_are_other_cases_texts_and_the_own_one_is_right(tmp_path: Path) -> None:
    rows = [{"name": f"n{i}", "does": f"does {i}", "answer": "shadowed"} for i in range(30)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "some.json").write_text(json.dumps([f"n{i}" for i in range(0, 30, 2)]))
    text = """\
name: n
tasks:
  - id: t
    kind: choice
    prompt: "{{ name }}"
    cases: {file: c.jsonl, only: {field: name, file: some.json}, distractors: {field: does, count: 3}}
"""
    items = _items(tmp_path, text)
    assert len(items) == 15
    for item in items:
        own = f" does {item.context[1:]}"
        assert item.continuations[item.gold[0]] == own
        assert len(set(item.continuations)) == 4
    assert len({item.gold for item in items}) > 1, "the right choice stands at varying places"
    assert _items(tmp_path, text) == items


def test_an_unanswerable_question_of_squad_is_answered_by_nothing(tmp_path: Path) -> None:
    asked = {"question": "Who?", "answers": [], "plausible_answers": [{"text": "me", "answer_start": 0}]}
    paragraph = {"context": "...", "qas": [{**asked, "id": "1", "is_impossible": True}]}
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}]}))
    text = """\
name: n
tasks:
  - {id: t, kind: generate, prompt: "{{ question }}", answer: answers, cases: {file: squad.json, format: squad},
     metrics: [f1]}
"""
    (item,) = _items(tmp_path, text)
    assert item.targets == ("",)
    assert word_f1([], squad_normal(item.targets[0]).split()) == 1
    assert word_f1(["me"], squad_normal(item.targets[0]).split()) == 0


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "style", "kind", "count"),
    [
        ("arc-easy-test.json", "arc", "choice", 2376),
        ("arc-challenge-test.json", "arc", "choice", 1172),
        ("TruthfulQA.csv", "truthfulqa", "choice", 817),
        ("gsm8k-test.jsonl", "gsm8k", "generate", 1319),
        ("xquad.en.json", "squad", "generate", 1190),
    ],
)
def test_the_fields_files_are_read_whole(
    tmp_path: Path, shared_data: Path, name: str, style: str, kind: str, count: int
) -> None:
    path = shared_data / "eval" / name
    answer = "answers" if style == "squad" else "answer"
    text = f"""\
name: n
tasks:
  - {{id: t, kind: {kind}, prompt: "{{{{ question }}}}", answer: {answer}, cases: {{file: "{path}", format: {style}}}}}
"""
    items = _items(tmp_path, text)
    assert len(items) == count
    assert all(item.targets for item in items)


def test_what_a_run_must_give_is_known_and_a_file_may_be_named_itself(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text("""\
name: n
variables: {judge: m}
tasks:
  - id: t
    kind: generate
    cases: {file: "${data}/cases.jsonl"}
    metrics: [{judge: {rubric: "says ${nothing}"}}]
  - {id: u, kind: retrieval, cases: [{prompt: x}], store: "${papers}"}
""")
    (info,) = [one for one in shipped.catalogue(tmp_path) if one.origin == "workspace"]
    assert info.problem is None
    assert info.needs == ("data", "papers")
    (tmp_path / "mine.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cases.jsonl").write_text('{"prompt": "y"}\n')
    for data, prompt in ((tmp_path / "mine.jsonl", "x"), (tmp_path / "data", "y")):
        loaded = suites.load(path, variables={"data": str(data), "papers": "p"})
        assert loaded.items[0].context == prompt
    with pytest.raises(MissingError, match="no such file of cases"):
        suites.load(path, variables={"data": str(tmp_path / "none"), "papers": "p"})
