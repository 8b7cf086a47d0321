"""Plans: what is valid loads into typed steps; every mistake is placed and named before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from lathe.engine.batch.gates import parse_gate
from lathe.engine.batch.places import located
from lathe.engine.batch.plan import load, substitute
from lathe.engine.errors import ConfigError, MissingError
from lathe.engine.steps import ConvertStep, EvalStep, ImatrixStep, QuantizeStep

GOOD_YAML = """\
schema: 1
name: nightly
steps:
  - {id: f16, run: convert, model: stdlib-4m, outtype: f16}
  - id: q4
    run: quantize
    model: ${f16.model}
    type: Q4_K_M
  - id: ppl
    run: perplexity
    needs: [f16]
    model: ${q4.model}
    expect: [perplexity <= 12, "chunks >= 1"]
    timeout_s: 60
"""
_LAUGHS = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
)
GOOD_TOML = """\
name = "nightly"
[[steps]]
id = "f16"
run = "convert"
model = "stdlib-4m"
outtype = "f16"
[[steps]]
id = "q4"
run = "quantize"
model = "${f16.model}"
"""


def _write(folder: Path, text: str, name: str = "plan.yaml") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_a_good_plan_becomes_steps(tmp_path: Path) -> None:
    plan = load(_write(tmp_path, GOOD_YAML))
    assert plan.name == "nightly"
    assert [step.id for step in plan.steps] == ["f16", "q4", "ppl"]
    assert plan.steps[0].step == ConvertStep(model="stdlib-4m", outtype="f16")
    assert plan.steps[1].needs == ("f16",)
    assert plan.steps[2].needs == ("f16", "q4")
    assert [str(gate) for gate in plan.steps[2].expect] == ["perplexity <= 12", "chunks >= 1"]
    assert plan.steps[2].line == 9


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    toml = load(_write(tmp_path, GOOD_TOML, "plan.toml"))
    assert toml.steps[0].step == ConvertStep(model="stdlib-4m", outtype="f16")
    json = load(_write(tmp_path, '{"steps": [{"run": "quantize", "model": "m", "type": "Q8_0"}]}', "plan.json"))
    assert json.steps[0].step == QuantizeStep(model="m", type="Q8_0")
    assert json.steps[0].id == "quantize-1"


def test_paths_are_those_of_where_the_plan_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "here").mkdir()
    (tmp_path / "s.yaml").write_text("")
    step = ImatrixStep(model="here", text="notes.txt", merge=("a.gguf", "/b.gguf"), output="~/out.gguf")
    assert located(step, tmp_path) == ImatrixStep(
        model=str(tmp_path / "here"), text=str(tmp_path / "notes.txt"), merge=(str(tmp_path / "a.gguf"), "/b.gguf"),
        output=str(tmp_path / "me" / "out.gguf"),
    )  # fmt: skip
    named = EvalStep(suite="stdlib", model="stdlib-4m")
    assert located(named, tmp_path) == named
    assert located(EvalStep(suite="s.yaml", model="m"), tmp_path).suite == str(tmp_path / "s.yaml")  # type: ignore[union-attr]


def test_references_are_filled_in_from_earlier_results(tmp_path: Path) -> None:
    plan = load(_write(tmp_path, GOOD_YAML))
    step = substitute(plan.steps[1].step, {"f16": {"model": "/models/f16.gguf"}})
    assert step == QuantizeStep(model="/models/f16.gguf", type="Q4_K_M")
    with pytest.raises(ConfigError, match="has no 'model'"):
        substitute(plan.steps[1].step, {"f16": {}})


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("steps: [{run: quantise, model: m}]", [r":1:10: unknown step 'quantise'; did you mean 'quantize'"]),
        (
            "steps:\n  - run: bench\n    modle: m\n",
            [r":3:5: .*no field 'modle'; did you mean 'model'", r"needs 'model'"],
        ),
        ("steps:\n  - run: bench\n    model: m\n    repetitions: 0\n", [r":4:5: repetitions: Expected `int` >= 1"]),
        ("steps:\n  - {run: bench, model: m, repetitions: many}\n", [r"repetitions: Expected `int`, got `str`"]),
        ("steps:\n  - {id: a, run: scan}\n  - {id: a, run: scan}\n", [r":3:6: id 'a' is used twice"]),
        ("steps:\n  - {id: 'a b', run: scan}\n", ["must be letters"]),
        ("steps:\n  - {run: bench, model: '${q4.model}'}\n", [r"no step 'q4' stands above this one"]),
        ("steps:\n  - {id: a, run: bench, model: '${a.model}'}\n", [r"no step 'a' stands above"]),
        ("steps:\n  - {id: b, run: scan, needs: [c]}\n", [r"no step 'c' stands above"]),
        ("steps:\n  - {id: q, run: scan}\n  - {run: bench, model: '${q.mdl}'}\n", [r"is not \$\{ID.model\}"]),
        ("steps:\n  - {run: scan, expect: ['x ~ 3']}\n", [r"'x ~ 3' is not a gate"]),
        ("steps:\n  - {run: scan, timeout_s: -1}\n", ["timeout_s must be a number of seconds above 0"]),
        ("stepz: []\nsteps: [{run: scan}]", [r":1:1: unknown key 'stepz'; did you mean 'steps'"]),
        ("schema: 2\nsteps: [{run: scan}]", ["schema 2 is not known"]),
        (
            "steps:\n  - run: quantize\n    model: m\n    type: Q9\n    tensor_types: {'(': q8_0, a: q9_1}\n",
            [
                r":4:5: no quantization type is called 'Q9'",
                r":5:5: '\(' is no regular",
                r"no tensor type is called 'q9_1'",
            ],
        ),
        ("steps:\n  - {run: perplexity, model: m, text: nope.txt}\n", [r":2:33: there is no file nope.txt"]),
        ("steps:\n  - {run: kld, model: m}\n", ["name the base model or a `base_file`"]),
        ("steps:\n  - {run: onnx-quantize, model: m, mode: int8-static}\n", ["needs a calibration `text`"]),
        ("steps: []", ["must be a list with at least one step"]),
        ("steps: [scan]", ["a step is a mapping"]),
        ("[1, 2]", ["a plan is a mapping"]),
        ("steps:\n  - {run: scan, run: bench}\n", [r":2:17: 'run' is given twice"]),
        ("steps: [{run: scan}", [r"plan.yaml:1:20: "]),
        ("a: &a [*a]\nsteps: *b", ["undefined alias"]),
        ("steps: !!python/object/apply:os.system ['true']", ["python/object"]),
        ("", ["a plan is a mapping"]),
        ("a: &a [*a]\nsteps: *a", ["aliases unfolded|recursion"]),
        (_LAUGHS, ["aliases unfolded"]),
    ],
)
def test_every_mistake_is_placed(tmp_path: Path, text: str, messages: list[str]) -> None:
    for message in messages:
        with pytest.raises(ConfigError, match=message):
            load(_write(tmp_path, text))


def test_what_an_earlier_step_makes_is_not_looked_for(tmp_path: Path) -> None:
    plan = load(
        _write(
            tmp_path,
            "steps:\n"
            "  - {id: i, run: imatrix, model: m, text: /dev/null, output: new.gguf}\n"
            "  - {run: quantize, model: m, type: q4_k_m, imatrix: ./new.gguf}\n"
            "  - {run: quantize, model: m, type: q4_k_m, imatrix: models/m-IMATRIX.gguf}\n"
            "  - {run: quantize, model: m, type: copy, imatrix: '${i.path}'}\n",
        )
    )
    assert len(plan.steps) == 4


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    text = "steps:\n  - {run: benhc, model: m}\n  - {run: quantize, modle: m}\n  - {run: scan, expect: [x]}\n"
    with pytest.raises(ConfigError) as caught:
        load(_write(tmp_path, text))
    assert len(caught.value.message.splitlines()) == 4


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such plan"):
        load(tmp_path / "none.yaml")


def test_a_plan_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_bytes(b"\xff\xfe\x00steps")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(path)


@pytest.mark.parametrize(
    ("text", "figures", "passes"),
    [
        ("perplexity <= 12", {"perplexity": 12.0}, True),
        ("perplexity < 12", {"perplexity": 12.0}, False),
        ("tokens_per_s>=1e2", {"tokens_per_s": 150}, True),
        ("perplexity <= 12", {}, False),
        ("perplexity <= 12", {"perplexity": None}, False),
        ("perplexity <= 12", {"perplexity": float("nan")}, False),
        ("ok == 1", {"ok": True}, False),
        ("a@b != -3.5", {"a@b": 1}, True),
        ("accuracy lower bound > 0.6", {"acc": 0.9, "acc.low": 0.55}, False),
        ("acc_norm Lower Bound > 60 %", {"acc_norm.low": 0.61}, True),
        ("mean KLD upper bound < 0.01", {"mean_kld": 0.009, "mean_kld_error": 0.001}, False),
        ("mean KLD upper bound < 0.01", {"mean_kld": 0.009, "mean_kld_error": 0.0001}, True),
        ("mean KLD upper bound < 0.01", {"mean_kld": 0.009}, False),
        ("p95 TTFT < 0.5", {"ttft_s": 0.9, "ttft_s.p95": 0.4}, True),
        ("no case tagged critical may break", {"broken.critical": 0, "broken": 3}, True),
        ("no case tagged critical may break", {"broken": 0}, False),
        ("no case may break", {"broken": 3}, False),
        ("no metric may get worse", {"worse": 0}, True),
    ],
)
def test_gates_pass_only_on_measured_numbers(text: str, figures: dict[str, float | None], passes: bool) -> None:
    assert parse_gate(text).passes(figures) is passes
