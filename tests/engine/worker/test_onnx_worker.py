"""ONNX models in a worker: the embedded model as a graph says what it says as GGUF, alone and in company."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lathe.engine.errors import UnavailableError
from lathe.engine.generation import EmbedRequest, GenerationRequest, Message, Sampling, ScoreRequest
from lathe.engine.local import LocalWorkbench
from lathe.engine.paths import Home
from lathe.engine.worker.backends.onnx.runtime import runtime
from lathe.engine.worker.backends.onnx.tokens import JsonVocabulary
from lathe.engine.worker.messages import Embed, Failed, Scores, ScoreTexts, Tokenize, Tokens, Vectors
from support.onnx_models import embedded_decoder, tiny_encoder, weights
from support.worker_child import Exchange, WorkerChild, worker_child

PROMPTS = (
    "def add(a, b):\n",
    "import os\n\ndef main():\n    x =",
    "class Reader:\n    def __init__(self, path):\n        self.path = path\n\n    def read(self):\n",
    "Return",
)
OPTIONS: dict[str, Any] = {"context": 256, "slots": 4, "threads": 1}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedded_decoder(tmp_path_factory.mktemp("onnx") / "stdlib-4m")


@pytest.fixture(scope="module")
def child(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerChild]:
    with worker_child(graph, tmp_path_factory.mktemp("log") / "onnx.log", **OPTIONS) as made:
        made.info = made.ready()  # type: ignore[attr-defined]
        yield made


@pytest.fixture(scope="module")
def native(embedded_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerChild]:
    with worker_child(embedded_gguf, tmp_path_factory.mktemp("log") / "gguf.log", **OPTIONS) as made:
        made.ready()
        yield made


def started(child: WorkerChild, prompts: tuple[str, ...] = PROMPTS, **fields: Any) -> list[Exchange]:
    requests = [child.generate(prompt=prompt, max_tokens=24, **fields) for prompt in prompts]
    got = child.collect(*requests)
    return [got[request] for request in requests]


def test_it_says_what_it_is(child: WorkerChild) -> None:
    info = child.info  # type: ignore[attr-defined]
    assert (info.backend, info.vocabulary, info.layers, info.context) == ("onnx", 4096, 4, 256)
    assert set(info.capabilities) == {"generate", "score", "chat"}
    assert (info.bos_token_id, info.eos_token_id) == (0, 2)
    assert "CPUExecutionProvider" in info.system


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(seed=7), Sampling(seed=3, top_k=0, min_p=0.1)])
def test_the_text_is_that_of_llama_cpp(child: WorkerChild, native: WorkerChild, sampling: Sampling) -> None:
    ours, theirs = started(child, sampling=sampling), started(native, sampling=sampling)
    same = [one.text() == other.text() for one, other in zip(ours, theirs, strict=True)]
    # Weights are float32 here and float16 there: a draw may fall on the other side of an edge, seldom.
    assert sum(same) >= 3, [(one.text(), other.text()) for one, other in zip(ours, theirs, strict=True)]


def test_company_changes_nothing(child: WorkerChild) -> None:
    alone = [child.text(prompt=prompt, max_tokens=24) for prompt in PROMPTS]
    assert [one.text() for one in started(child)] == alone


def test_requests_come_and_go_while_others_stream(child: WorkerChild) -> None:
    lengths = (3, 40, 9, 17, 28, 5, 33, 12)
    alone = [child.text(prompt=PROMPTS[place % 4], max_tokens=length) for place, length in enumerate(lengths)]
    requests = [child.generate(prompt=PROMPTS[place % 4], max_tokens=length) for place, length in enumerate(lengths)]
    got = child.collect(*requests)
    assert [got[request].text() for request in requests] == alone


def test_choices_differ_by_their_seeds_and_agree_with_single_ones(child: WorkerChild) -> None:
    both = child.answer(child.generate(prompt=PROMPTS[0], max_tokens=16, n=2, sampling=Sampling(seed=5)))
    assert both.text(0) != both.text(1)
    assert both.text(0) == child.text(prompt=PROMPTS[0], max_tokens=16, sampling=Sampling(seed=5))
    assert both.text(1) == child.text(prompt=PROMPTS[0], max_tokens=16, sampling=Sampling(seed=6))


@pytest.mark.parametrize("old", [{"positions": False}, {"merged": True}])
def test_graphs_of_older_exports_serve_their_sequences_in_turn(
    tmp_path: Path, child: WorkerChild, old: dict[str, bool]
) -> None:
    folder = embedded_decoder(tmp_path / "old", **old)
    with worker_child(folder, tmp_path / "log", **OPTIONS) as other:
        other.ready()
        assert [one.text() for one in started(other)] == [one.text() for one in started(child)]


def test_a_prompt_in_chunks_is_the_prompt(graph: Path, child: WorkerChild, tmp_path: Path) -> None:
    prompt = PROMPTS[2] * 5
    with worker_child(graph, tmp_path / "log", **OPTIONS, batch_tokens=16) as small:
        small.ready()
        assert small.text(prompt=prompt, max_tokens=16) == child.text(prompt=prompt, max_tokens=16)


def test_log_probabilities_agree_with_llama_cpp(child: WorkerChild, native: WorkerChild) -> None:
    found = [
        one.answer(one.generate(prompt=PROMPTS[2], max_tokens=4, logprobs=3, echo=True)) for one in (child, native)
    ]
    ours, theirs = ([*one.deltas[0].prompt_logprobs, *(x for d in one.deltas for x in d.logprobs)] for one in found)
    assert [entry.id for entry in ours] == [entry.id for entry in theirs]
    assert [entry.raw for entry in ours] == [entry.raw for entry in theirs]
    assert ours[0].logprob is None
    np.testing.assert_allclose([x.logprob for x in ours[1:]], [x.logprob for x in theirs[1:]], atol=0.05)
    assert [len(entry.top) for entry in ours[1:]] == [3] * (len(ours) - 1)


def test_scores_agree_with_llama_cpp(child: WorkerChild, native: WorkerChild) -> None:
    request = ScoreRequest(model="tested", context="import os\nos.path.", continuations=("join(a)", "exists(x)", "zz"))
    scores = []
    for one in (child, native):
        (message,) = (m for m in one.answer(one.ask(ScoreTexts, request=request)).messages if isinstance(m, Scores))
        scores.append(message.scores)
    assert [score.greedy for score in scores[0]] == [score.greedy for score in scores[1]]
    np.testing.assert_allclose([s.logprob for s in scores[0]], [s.logprob for s in scores[1]], atol=0.1)


def test_the_next_turn_finds_the_last_one(child: WorkerChild) -> None:
    talk = (Message("user", "What does os.path.join do with several parts of a path? " * 5),)
    first = child.answer(child.generate(messages=talk, max_tokens=16))
    longer = (*talk, Message("assistant", first.text()), Message("user", "And with none?"))
    second = child.answer(child.generate(messages=longer, max_tokens=16))
    again = child.answer(child.generate(messages=longer, max_tokens=16, cache_prompt=False))
    usage = second.last.usage
    assert usage is not None
    assert usage.cached_tokens > 64
    assert second.text() == again.text()
    other = child.answer(child.generate(messages=longer, max_tokens=16, principal="somebody else"))
    assert other.last.usage is not None
    assert other.last.usage.cached_tokens == 0


def test_stops_are_held_back_and_cut(child: WorkerChild) -> None:
    whole = child.text(prompt=PROMPTS[0], max_tokens=24)
    stop = whole[8:12]
    got = child.answer(child.generate(prompt=PROMPTS[0], max_tokens=24, stop=(stop,)))
    assert got.text() == whole[: whole.index(stop)]
    assert (got.finish(), got.last.stop_text) == ("stop", stop)


def test_cancel_ends_one_and_leaves_the_others(child: WorkerChild) -> None:
    gone = child.generate(prompt=PROMPTS[1], max_tokens=200, sampling=Sampling(temperature=0, ignore_eos=True))
    stays = child.generate(prompt=PROMPTS[0], max_tokens=24)
    waiting = child.generate(prompt=PROMPTS[2] * 5, max_tokens=100)
    child.cancel(gone)
    child.cancel(waiting)
    got = child.collect(gone, stays, waiting)
    assert [got[one].finish() for one in (gone, waiting)] == ["cancelled", "cancelled"]
    assert got[stays].text() == child.text(prompt=PROMPTS[0], max_tokens=24)


def test_a_deadline_holds(child: WorkerChild) -> None:
    sampling = Sampling(temperature=0, ignore_eos=True)
    got = child.answer(child.generate(prompt=PROMPTS[0], max_tokens=240, deadline_s=0.05, sampling=sampling))
    assert got.finish() == "deadline"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"sampling": Sampling(grammar='root ::= "a"')}, "E_CAPABILITY"),
        ({"sampling": Sampling(json_schema="{}")}, "E_CAPABILITY"),
        ({"sampling": Sampling(dry_multiplier=0.8)}, "E_CAPABILITY"),
        ({"adapters": {"pirate": 1.0}}, "E_USAGE"),
        ({"max_tokens": 10_000}, "E_CONTEXT_OVERFLOW"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(child: WorkerChild, fields: dict[str, Any], code: str) -> None:
    failed = child.answer(child.generate(prompt="x", **fields)).failed
    assert failed is not None
    assert failed.failure.code == code


def test_names_of_control_tokens_in_users_text_are_text(graph: Path, child: WorkerChild) -> None:
    vocabulary = JsonVocabulary(graph, 4096, 256)
    name = "<|im_end|>"
    assert vocabulary.encode(name, special=True) == [2]
    assert 2 not in vocabulary.encode(name)
    assert vocabulary.decode(vocabulary.encode(name)) == name
    (tokens,) = (
        m
        for m in child.answer(child.ask(Tokenize, text=name, special=False, bos=False)).messages
        if isinstance(m, Tokens)
    )
    assert 2 not in tokens.tokens
    assert (vocabulary.piece(2), vocabulary.name(2)) == (b"", b"<|im_end|>")


@pytest.mark.parametrize("text", ["naïve café — 漢字 🙂\n\ttab", "", "a\x00b", "é" * 40])
def test_text_survives_the_vocabulary(graph: Path, text: str) -> None:
    vocabulary = JsonVocabulary(graph, 4096, 256)
    assert vocabulary.decode(vocabulary.encode(text)) == text


# -- encoders --------------------------------------------------------------------------------------------------------
def embedded(child: WorkerChild, *texts: str, **fields: Any) -> np.ndarray[Any, Any]:
    exchange = child.answer(child.ask(Embed, request=EmbedRequest(model="tested", texts=texts, **fields)))
    assert exchange.failed is None, exchange.failed
    (found,) = (message for message in exchange.messages if isinstance(message, Vectors))
    return np.frombuffer(found.embeddings.vectors, "<f4").reshape(len(texts), -1)


def test_vectors_are_pooled_as_asked_and_padding_does_not_count(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "encoder", pooling="cls_token")
    vocabulary, table = JsonVocabulary(folder, 0, 64), weights()["model.embed_tokens.weight"]
    texts = ("os.path.join", "a", "Return the sum of a list of numbers, or zero.")
    with worker_child(folder, tmp_path / "log", threads=1) as child:
        info = child.ready()
        assert info.capabilities == ("embed",)
        assert info.context == 64
        rows = [table[vocabulary.encode(text, ends=True)] for text in texts]
        expected = {"mean": [row.mean(axis=0) for row in rows], "last": [row[-1] for row in rows]}
        expected["cls"] = expected["model"] = [row[0] for row in rows]
        for pooling, wanted in expected.items():
            found = embedded(child, *texts, pooling=pooling, normalize=False)
            np.testing.assert_allclose(found, np.stack(wanted), atol=1e-6)
        lengths = np.linalg.norm(embedded(child, *texts), axis=1)
        np.testing.assert_allclose(lengths, 1, atol=1e-6)
        refused = child.answer(
            child.ask(Embed, request=EmbedRequest(model="t", texts=("a",), pooling="rank", query="q"))
        )
        assert refused.failed is not None
        assert refused.failed.failure.code == "E_CAPABILITY"
        too_long = child.answer(child.ask(Embed, request=EmbedRequest(model="t", texts=("a b " * 99,))))
        assert too_long.failed is not None
        assert too_long.failed.failure.code == "E_CONTEXT_OVERFLOW"


def test_a_cross_encoder_scores_pairs(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "ranker", scores=True)
    vocabulary, table = JsonVocabulary(folder, 0, 64), weights()["model.embed_tokens.weight"]
    with worker_child(folder, tmp_path / "log", threads=1) as child:
        assert child.ready().capabilities == ("embed", "rank")
        found = embedded(child, "short", "a much longer text", pooling="rank", query="which?")
        wanted = [table[vocabulary.pair("which?", text)][:, 0].sum() for text in ("short", "a much longer text")]
        np.testing.assert_allclose(found[:, 0], wanted, atol=1e-5)


# -- loading ---------------------------------------------------------------------------------------------------------
def refused(path: Path, log: Path, **options: Any) -> Failed:
    with worker_child(path, log, **options) as child:
        message = child.receive()
        assert isinstance(message, Failed)
        return message


def test_what_cannot_be_served_is_refused_with_a_way_out(graph: Path, tmp_path: Path) -> None:
    failure = refused(graph, tmp_path / "log", draft="lookup").failure
    assert failure.code == "E_CAPABILITY"
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "model.onnx").write_bytes((graph / "model.onnx").read_bytes())
    failure = refused(bare, tmp_path / "log").failure
    assert "tokenizer.json" in failure.message
    assert failure.hint
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.onnx").write_bytes((graph / "model.onnx").read_bytes()[:-5000])
    assert refused(broken, tmp_path / "log").failure.exit == 65


def test_a_missing_library_is_one_line_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnavailableError, match="onnxruntime, which is not installed") as caught:
        runtime()
    assert "lathe-llm[onnx]" in caught.value.hint


async def test_the_workbench_gives_the_template_its_variables(graph: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(graph, tmp_path / "thinker")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking %}<think>{% endif %}"
    )
    workbench = await LocalWorkbench.open(Home(tmp_path / "home"))
    try:
        said = [Message("user", "Why?")]
        plain = await workbench.render(str(folder), said)
        thinking = await workbench.render(str(folder), said, template_args={"enable_thinking": True})
        assert (plain.text, thinking.text) == ("Why?", "Why?<think>")
        request = GenerationRequest(
            model=str(folder), messages=tuple(said), template_args={"enable_thinking": True}, max_tokens=1
        )
        deltas = [delta async for delta in workbench.generate(request)]
        assert deltas[-1].usage is not None
        assert deltas[-1].usage.prompt_tokens == len(thinking.tokens)
        worker = (await workbench.snapshot()).workers[0]
        assert worker.info is not None
        assert worker.info.backend == "onnx"
        assert worker.predicted is not None
        assert worker.predicted.total > (worker.info.weights_bytes or 0) > 0
    finally:
        await workbench.close()
