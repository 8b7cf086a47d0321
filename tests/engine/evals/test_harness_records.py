"""What lm-evaluation-harness returned becomes a run of ours with the same means."""

from __future__ import annotations

import math

import pytest
from lathe.engine.evals.compare import compare
from lathe.engine.evals.harness_records import convert
from lathe.engine.evals.results import EvalRun
from lathe.engine.evals.summary import summarize

RESULTS = {
    "configs": {"arc": {"output_type": "multiple_choice"}, "wiki": {"output_type": "loglikelihood_rolling"},
                "gsm": {"output_type": "generate_until"}},
    "higher_is_better": {"arc": {"acc": True, "acc_norm": True}, "gsm": {"wrong": False}},
    "samples": {
        "arc": [
            {"doc_id": number, "target": 1, "filter": "none", "metrics": ["acc", "acc_norm"], "acc": float(number == 0),
             "acc_norm": 1.0, "arguments": [("Q:", " a"), ("Q:", " bc")],
             "filtered_resps": [(-3.0, False), (-1.0 - 4 * number, True)]}
            for number in range(2)
        ],
        "wiki": [
            {"doc_id": 0, "target": "", "filter": "none", "metrics": ["word_perplexity", "bits_per_byte"],
             "word_perplexity": (-30.0, 10), "bits_per_byte": (-30.0, 50), "arguments": [("a text",)],
             "filtered_resps": [-30.0]},
        ],
        "gsm": [
            {"doc_id": 0, "target": "7", "filter": "strict", "metrics": ["exact_match", "bleu", "wrong"],
             "exact_match": 1, "bleu": ("7", "7"), "wrong": 0.25, "arguments": [("2+5=", {"until": []})],
             "filtered_resps": ["7"]},
            {"doc_id": 0, "target": "7", "filter": "loose", "metrics": ["exact_match"], "exact_match": 0,
             "arguments": [("2+5=", {"until": []})], "filtered_resps": ["seven"]},
        ],
    },
}  # fmt: skip


def test_samples_become_records_and_means_stay() -> None:
    found = convert(RESULTS)
    by_task = {record.label: record for record in found.records}
    first = by_task["arc/00000"]
    assert (first.prompt, first.continuations, first.gold, first.choice) == ("Q:", (" a", " bc"), (1,), 1)
    assert by_task["arc/00001"].choice == 0
    assert first.targets == (" bc",)
    assert by_task["gsm/00000"].response.text == "7"
    assert by_task["gsm/00000"].values == {"exact_match.strict": 1.0, "wrong.strict": 0.25, "exact_match.loose": 0.0}
    assert found.left_out == ("gsm bleu.strict",)
    figures = {task.task: task for task in summarize(found.tasks, found.records)}
    assert figures["arc"].metrics["acc"].value == 0.5
    assert figures["wiki"].metrics["word_perplexity"].value == pytest.approx(math.exp(3))
    assert figures["wiki"].metrics["bits_per_byte"].value == pytest.approx(30 / 50 / math.log(2))
    assert figures["arc"].better == {"acc": "higher", "acc_norm": "higher"}
    assert figures["gsm"].better["wrong.strict"] == "lower"


def test_runs_of_the_harness_are_compared_like_ours() -> None:
    found = convert(RESULTS)
    run = EvalRun(id="e-1", suite="lm_eval arc", model="m", tasks=found.tasks)
    comparison = compare(run, found.records, run, found.records)
    assert {metric.finding for metric in comparison.metrics} == {"same"}
    assert comparison.counts["same"] == len(found.records)
