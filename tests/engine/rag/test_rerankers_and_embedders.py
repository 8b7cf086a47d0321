"""Cross-encoders and embedders as models of the engine: tiny ones with random weights, as GGUF and as published.

Random weights rank nothing well; what is tested is that the order is the model's own, whichever backend runs it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from lathe.engine.embedded import CHECKPOINT
from lathe.engine.errors import LatheError
from lathe.engine.generation import EmbedRequest
from lathe.engine.local import LocalWorkbench
from lathe.engine.paths import Home
from lathe.engine.rag.embedding import open_embedder
from lathe.engine.rag.requests import SearchRequest
from lathe.engine.steps import RagBuildStep, RagReembedStep, ScanStep
from lathe.engine.worker.backends.registry import backend_for
from lathe.engine.worker.messages import LoadOptions
from lathe.quantize.convert.convert import convert_checkpoint
from lathe.quantize.errors import UnsafeError
from lathe.store.rag import columns
from lathe.store.rag.store import RagStore
from support.families import RECIPES

TEXTS = ("the cat", "a dog and the cat", "one more dog", "a house of the cat")
QUERY = "the cat"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints and their GGUFs."""
    place = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}
    for name in ("reranker", "minilm"):
        made[name] = RECIPES[name].write(place / name)
        made[f"{name}.gguf"] = place / f"{name}.gguf"
        convert_checkpoint(made[name], made[f"{name}.gguf"], outtype="f32")
    other = RECIPES["minilm"].write(place / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    made["other.gguf"] = place / "other.gguf"
    convert_checkpoint(other, made["other.gguf"], outtype="f32")
    return made


@pytest.fixture
async def workbench(home: Path) -> AsyncIterator[LocalWorkbench]:
    opened = await LocalWorkbench.open(Home(home), flags={"serving.threads": "1"})
    yield opened
    await opened.close()


async def scores(workbench: LocalWorkbench, model: Path) -> np.ndarray:
    request = EmbedRequest(model=str(model), texts=TEXTS, pooling="rank", query=QUERY, normalize=False)
    return np.frombuffer((await workbench.embed(request)).vectors, "<f4")


async def vectors(workbench: LocalWorkbench, model: Path) -> np.ndarray:
    found = await workbench.embed(EmbedRequest(model=str(model), texts=TEXTS))
    return np.frombuffer(found.vectors, "<f4").reshape(found.rows, -1)


@pytest.mark.native
async def test_a_search_is_ordered_by_the_cross_encoder(
    workbench: LocalWorkbench, models: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(f"{text}\n")
    step = RagBuildStep(store="s", sources=(str(folder),), words_only=True)
    assert (await workbench.wait((await workbench.submit(step)).id)).failure is None
    model = models["reranker.gguf"]
    result = await workbench.search_store(SearchRequest(store="s", query=QUERY, mode="bm25", reranker=str(model)))
    expected = dict(zip(TEXTS, await scores(workbench, model), strict=True))
    found = [(hit.passage.text, hit.score) for hit in result.hits]
    assert found == sorted(found, key=lambda pair: -pair[1]) and len(found) == 3
    for text, score in found:
        assert score == pytest.approx(float(expected[text]), abs=1e-4)
    assert [hit.sources["rerank"].rank for hit in result.hits] == [1, 2, 3]
    assert all("bm25" in hit.sources for hit in result.hits) and result.timings["rerank"] > 0
    with pytest.raises(LatheError, match="cross-encoder"):
        await workbench.search_store(
            SearchRequest(store="s", query=QUERY, mode="bm25", reranker=str(models["minilm.gguf"]))
        )


@pytest.mark.native
async def test_another_embedder_takes_over_in_the_background(
    workbench: LocalWorkbench, models: dict[str, Path], tmp_path: Path, home: Path
) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(f"{text}\n")
    step = RagBuildStep(store="s", sources=(str(folder),), embedder=str(models["minilm.gguf"]))
    built = await workbench.wait((await workbench.submit(step)).id)
    assert built.outcome is not None and built.outcome.figures["reembed_job"] is None

    other = RagBuildStep(store="s", embedder=str(models["other.gguf"]), reembed="manual")
    refused = await workbench.wait((await workbench.submit(other)).id)
    assert refused.failure is not None and "answers with minilm" in refused.failure.message

    automatic = RagBuildStep(store="s", embedder=str(models["other.gguf"]), reembed="auto")
    again = await workbench.wait((await workbench.submit(automatic)).id)
    assert again.outcome is not None
    number = again.outcome.figures["reembed_job"]
    assert isinstance(number, str)
    anew = await workbench.wait(number)
    assert isinstance(anew.step, RagReembedStep) and anew.outcome is not None and anew.outcome.figures["switched"]
    with RagStore.open(home / "stores" / "s.db") as store:
        [column] = store.read(columns.all_columns)
        assert (column.number, column.state, column.vectors, column.embedder.name) == (2, "active", 4, "other")
        assert store.verify().sound
    result = await workbench.search_store(SearchRequest(store="s", query=QUERY, mode="dense"))
    assert len(result.hits) == 4


@pytest.mark.native
async def test_a_store_whose_embedder_was_replaced_is_embedded_anew_when_it_is_opened(
    models: dict[str, Path], tmp_path: Path, home: Path
) -> None:
    folder, model = tmp_path / "docs", tmp_path / "mine.gguf"
    folder.mkdir()
    (folder / "a.txt").write_text("the cat\n")
    shutil.copyfile(models["minilm.gguf"], model)
    lasting = await LocalWorkbench.open(Home(home), flags={"serving.threads": "1"}, carrier="socket")
    try:
        step = RagBuildStep(store="s", sources=(str(folder),), embedder=str(model))
        assert (await lasting.wait((await lasting.submit(step)).id)).failure is None
        await lasting.unload("mine")
        shutil.copyfile(models["other.gguf"], model)
        await lasting.wait((await lasting.submit(ScanStep(roots=(str(tmp_path),)))).id)
        first = await lasting.search_store(SearchRequest(store="s", query=QUERY))
        assert first.mode == "bm25" and first.note and first.hits
        [anew] = [job for job in await lasting.jobs() if isinstance(job.step, RagReembedStep)]
        assert (await lasting.wait(anew.id)).state == "done"
        again = await lasting.search_store(SearchRequest(store="s", query=QUERY))
        assert again.mode == "hybrid" and "dense" in again.hits[0].sources
    finally:
        await lasting.close()


def test_folders_of_encoders_run_in_sentence_transformers(models: dict[str, Path]) -> None:
    for name in ("reranker", "minilm"):
        assert backend_for(str(models[name]), LoadOptions()) == "sentence_transformers"
    assert backend_for(str(CHECKPOINT), LoadOptions()) == "llama_cpp"


@pytest.mark.native
async def test_both_backends_agree_about_pairs_and_texts(workbench: LocalWorkbench, models: dict[str, Path]) -> None:
    pytest.importorskip("sentence_transformers")
    one, other = await scores(workbench, models["reranker"]), await scores(workbench, models["reranker.gguf"])
    np.testing.assert_allclose(one, other, atol=2e-3)
    cosines = (await vectors(workbench, models["minilm"]) * await vectors(workbench, models["minilm.gguf"])).sum(1)
    assert cosines.min() > 0.999
    embedder = await open_embedder(workbench, str(models["minilm"]))
    assert embedder.identity.kind == "sentence-transformers" and 0 < embedder.count(["the cat"])[0] < 6
    too_long = EmbedRequest(model=str(models["minilm"]), texts=("the cat " * 200,))
    with pytest.raises(LatheError, match="tokens, the model reads"):
        await workbench.embed(too_long)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([{"idx": 0, "name": "0", "path": "", "type": "os.system"}], "no part of sentence-transformers"),
        (
            [{"idx": 0, "name": "0", "path": "../..", "type": "sentence_transformers.models.Pooling"}],
            "not a plain name",
        ),
    ],
)
async def test_a_folder_that_brings_code_is_refused_before_any_library_sees_it(
    workbench: LocalWorkbench, tmp_path: Path, modules: list[dict[str, object]], message: str
) -> None:
    folder = RECIPES["minilm"].write(tmp_path / "evil")
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises((LatheError, UnsafeError), match=message):
        await workbench.embed(EmbedRequest(model=str(folder), texts=TEXTS))
