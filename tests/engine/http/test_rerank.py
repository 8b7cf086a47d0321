"""`/v1/rerank` over a real cross-encoder, `/v1/embeddings` over a real encoder; tiny ones, converted by ourselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lathe.engine.worker.messages import LoadOptions
from lathe.quantize.convert import convert_checkpoint
from support.families import RECIPES
from support.served_model import served_model

pytestmark = pytest.mark.native
OPTIONS = LoadOptions(context=128, slots=2, threads=1)
DOCUMENTS = ["the cat sat on the mat", "a dog", "files and folders", "the cat", "numbers: 1 2 3"]


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reranker")
    convert_checkpoint(RECIPES["reranker"].write(folder / "checkpoint"), folder / "tiny-reranker.gguf", outtype="f32")
    return folder / "tiny-reranker.gguf"


async def test_a_cross_encoder_orders_documents_by_its_score(home: Path, cross_encoder: Path) -> None:
    async with served_model(home, cross_encoder, OPTIONS) as served:
        body: dict[str, Any] = {"model": served.model, "query": "where is the cat?", "documents": DOCUMENTS}
        answer = await served.client.post("/v1/rerank", json=body)
        assert answer.status_code == 200, answer.text
        ranked = answer.json()
        scores = {row["index"]: row["relevance_score"] for row in ranked["results"]}
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        assert sorted(scores) == list(range(len(DOCUMENTS))) and len(set(scores.values())) > 1
        assert ranked["usage"]["prompt_tokens"] > len(DOCUMENTS)
        for index, document in enumerate(DOCUMENTS):
            alone = (await served.client.post("/v1/rerank", json=body | {"documents": [document]})).json()["results"]
            assert alone[0]["relevance_score"] == pytest.approx(scores[index], abs=2e-3), "a batch changes no order"
        top = (await served.client.post("/v1/rerank", json=body | {"top_n": 2, "return_documents": True})).json()
        assert [row["document"]["text"] for row in top["results"]] == [DOCUMENTS[index] for index in list(scores)[:2]]


async def test_what_a_model_cannot_do_is_the_request_s_fault(
    home: Path, cross_encoder: Path, embedded_gguf: Path
) -> None:
    async with served_model(home, cross_encoder, OPTIONS) as served:
        chat = {"model": served.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        answer = await served.client.post("/v1/chat/completions", json=chat)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"] == "not_supported"


async def test_a_language_model_is_no_reranker(home: Path, embedded_gguf: Path) -> None:
    async with served_model(home, embedded_gguf, OPTIONS) as served:
        answer = await served.client.post("/v1/rerank", json={"model": served.model, "query": "q", "documents": ["d"]})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"] == "not_supported"
