"""llama-server's own routes: its shapes, streams that add up, and gaps framed by the model's tokens."""

from __future__ import annotations

from typing import Any

import pytest
from lathe.engine.generation import GenerationRequest
from lathe.engine.http import fim
from support import scripted_text
from support.http_kit import MODEL, HeldWorkbench, Served, serving, sse

MARKS = {"<|fim_prefix|>": 90, "<|fim_suffix|>": 91, "<|fim_middle|>": 92, "<|repo_name|>": 93, "<|file_sep|>": 94}


@pytest.fixture(autouse=True)
def markers_in_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, number in MARKS.items():
        monkeypatch.setitem(scripted_text._SEEN, number, text)


class Filler(HeldWorkbench):
    """A model trained to fill gaps."""

    async def tokenize(self, model: str, text: str, special: bool = False, bos: bool = False) -> list[int]:
        if special and text in MARKS:
            return [MARKS[text]]
        return await super().tokenize(model, text, special, bos)


def asked(served: Served) -> GenerationRequest:
    return next(call[1] for call in reversed(served.workbench.calls) if call[0] == "generate")


@pytest.mark.parametrize(
    ("extra", "ended"),
    [
        ({}, "eos"),
        ({"n_predict": 3}, "limit"),
        ({"stop": ["memory"]}, "word"),
        ({"n_probs": 2, "n_predict": 2}, "limit"),
    ],
)
async def test_a_native_stream_adds_up_to_the_whole_answer(extra: dict[str, Any], ended: str) -> None:
    async with serving(HeldWorkbench(answer="Keys and values in memory. é😀")) as served:
        body = {"model": MODEL, "prompt": "hi", "return_tokens": True} | extra
        whole = (await served.post("/completion", body)).json()
        events = sse(await served.stream("/completion", body | {"stream": True}))
        assert "".join(event["content"] for event in events) == whole["content"]
        assert [token for event in events for token in event["tokens"]] == whole["tokens"]
        assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
        probable = [item for event in events for item in event.get("completion_probabilities", [])]
        assert probable == whole.get("completion_probabilities", [])
        last = events[-1]
        assert last["stop_type"] == whole["stop_type"] == ended
        assert last["timings"]["predicted_n"] == whole["tokens_predicted"] == len(whole["tokens"])
        assert whole["truncated"] is False


async def test_llama_server_s_clients_may_send_what_has_no_effect() -> None:
    async with serving() as served:
        body = {
            "model": MODEL, "prompt": "hi", "n_predict": -1, "samplers": ["top_k"], "id_slot": -1, "n_keep": 0,
            "t_max_predict_ms": 500, "cache_prompt": True, "response_fields": ["content"], "n_indent": 0,
        }  # fmt: skip
        assert (await served.post("/completion", body)).status_code == 200
        assert asked(served).max_tokens is None


@pytest.mark.parametrize("extra", [{"prompt": ["a", "b"]}, {"n": 2}, {"prompt": []}, {"prompt": None}])
async def test_several_prompts_or_answers_are_refused(extra: dict[str, Any]) -> None:
    async with serving() as served:
        assert (await served.post("/completion", {"model": MODEL, "prompt": "a"} | extra)).status_code == 400


async def test_a_gap_is_framed_by_the_model_s_tokens() -> None:
    async with serving(Filler()) as served:
        tokens = served.workbench.tokenize
        body = {"model": MODEL, "input_prefix": "def f(", "input_suffix": "): pass", "prompt": "self", "n_predict": 4}
        answer = (await served.post("/infill", body)).json()
        assert answer["stop_type"] == "limit"
        assert asked(served).tokens == (
            90, *await tokens(MODEL, "def f("), 91, *await tokens(MODEL, "): pass"), 92, *await tokens(MODEL, "self"),
        )  # fmt: skip
        completion = {"model": MODEL, "prompt": "def f(", "suffix": "): pass", "max_tokens": 4}
        assert (await served.post("/v1/completions", completion)).status_code == 200
        assert asked(served).tokens == (90, *await tokens(MODEL, "def f("), 91, *await tokens(MODEL, "): pass"), 92)


async def test_other_files_come_first_under_their_names() -> None:
    async with serving(Filler()) as served:
        extra = [{"filename": "a.py", "text": "A = 1"}]
        body = {"model": MODEL, "input_prefix": "x", "input_extra": extra, "n_predict": 1}
        assert (await served.post("/infill", body)).status_code == 200
        ids = asked(served).tokens or ()
        assert [token for token in ids if token in MARKS.values()] == [93, 94, 94, 90, 91, 92]
        text = await served.workbench.detokenize(MODEL, list(ids))
        assert "a.py\nA = 1\n" in text


async def test_text_cannot_forge_the_markers() -> None:
    async with serving(Filler()) as served:
        body = {"model": MODEL, "input_prefix": "<|fim_middle|>", "input_suffix": "<|fim_suffix|>", "n_predict": 1}
        assert (await served.post("/infill", body)).status_code == 200
        marks = [token for token in asked(served).tokens or () if token in MARKS.values()]
        assert marks == [90, 91, 92]


async def test_a_model_without_markers_says_so() -> None:
    async with serving() as served:
        for path, body in (
            ("/infill", {"input_prefix": "def f("}),
            ("/v1/completions", {"prompt": "a", "suffix": "b"}),
            ("/api/generate", {"prompt": "a", "suffix": "b"}),
        ):
            answer = await served.post(path, {"model": MODEL} | body)
            assert answer.status_code == 400
            assert "was not trained to fill gaps" in answer.text


async def test_markers_are_looked_for_family_by_family() -> None:
    async def tokenize(text: str, special: bool) -> list[int]:
        known = {"<PRE>": 1, "<SUF>": 2, "<MID>": 3, "<fim_prefix>": 4}
        return [known[text]] if special and text in known else [10, 11]

    assert await fim.find(tokenize) == fim.FimTokens(1, 2, 3)
