"""lm-evaluation-harness on a model whose likelihoods are known: its three questions, its cache refused, the canary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lathe.engine.errors import PolicyError
from lathe.engine.evals import harness
from lathe.engine.evals.canary import CanaryDied
from lathe.engine.paths import Home
from support.eval_model import BOS, TableModel

pytest.importorskip("lm_eval")


class TableBridge(harness.Bridge):
    """A bridge to the table instead of an engine."""

    def __init__(self, model: TableModel) -> None:
        super().__init__(Home(Path("/nowhere")))
        self.workbench = model  # type: ignore[assignment]

    def __enter__(self) -> TableBridge:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def bridge() -> Iterator[TableBridge]:
    with TableBridge(TableModel(say=lambda prompt: prompt.upper())) as bridge:
        yield bridge


def _instance(kind: str, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=(None, None, None))


def _sum(model: TableModel, tokens: bytes, start: int) -> float:
    padded = [BOS, *tokens]
    return sum(float(model.table[padded[i], padded[i + 1]]) for i in range(start, len(tokens)))


def test_likelihoods_come_in_the_order_of_the_requests(bridge: TableBridge) -> None:
    lm = harness.make_lm(bridge, "m")
    pairs = [("ab", "cd"), ("xy", "z"), ("ab", "ef"), ("", "cd")]
    answers = lm.loglikelihood([_instance("loglikelihood", *pair) for pair in pairs])
    wanted = [_sum(bridge.workbench, (a + b).encode(), len(a)) for a, b in pairs]  # type: ignore[arg-type]
    assert [value for value, _ in answers] == pytest.approx(wanted)
    asked = [prompt for prompt in bridge.workbench.asked if prompt == "ab"]  # type: ignore[attr-defined]
    assert len(asked) == 1, "continuations of one context are asked together"


def test_a_rolled_text_is_scored_once_whatever_its_length(bridge: TableBridge) -> None:
    lm = harness.make_lm(bridge, "m")
    for length in (1, 62, 63, 64, 200):
        text = ("some text, " * 20)[:length]
        (value,) = lm.loglikelihood_rolling([_instance("loglikelihood_rolling", text)])
        assert value == pytest.approx(_sum(bridge.workbench, text.encode(), 0))  # type: ignore[arg-type]


def test_text_is_generated_with_the_tasks_settings(bridge: TableBridge) -> None:
    lm = harness.make_lm(bridge, "m")
    settings = {"until": ["\n"], "max_gen_toks": 9, "do_sample": False}
    assert lm.generate_until([_instance("generate_until", "abc", settings)]) == ["ABC"]
    assert lm.apply_chat_template([{"role": "user", "content": "hi"}]) == "user: hi\n"


def test_a_model_that_lies_is_not_run(bridge: TableBridge) -> None:
    bridge.workbench.lie = -1.0  # type: ignore[attr-defined]
    with pytest.raises(CanaryDied):
        harness.make_lm(bridge, "m")


@pytest.mark.parametrize("name", ["use_cache", "cache_requests"])
def test_the_harnesss_pickles_are_refused(bridge: TableBridge, name: str) -> None:
    with pytest.raises(PolicyError, match="pickles"):
        harness.run_tasks(bridge, "m", ["x"], **{name: "/tmp/foreign"})


def test_a_task_of_the_harness_runs_offline(bridge: TableBridge, tmp_path: Path) -> None:
    (tmp_path / "cases.jsonl").write_text('{"q": "ab", "choices": ["cd", "ef"], "gold": 0}\n' * 4)
    (tmp_path / "tiny.yaml").write_text(f"""\
task: tiny
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{tmp_path}/cases.jsonl"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc}}]
""")
    results = harness.run_tasks(bridge, "m", ["tiny"], include_path=tmp_path, bootstrap_iters=0)
    model = bridge.workbench
    right = _sum(model, b"ab cd", 2) > _sum(model, b"ab ef", 2)  # type: ignore[arg-type]
    assert results["results"]["tiny"]["acc,none"] == float(right)
    assert len(results["samples"]["tiny"]) == 4
