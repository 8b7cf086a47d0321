"""Building stores: only what changed is done, nothing is lost, every file has its fate."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest
from lathe.engine.errors import MissingError
from lathe.engine.rag.building import Builder
from lathe.engine.rag.sources import Sources, source_names
from lathe.store.rag import columns, documents, versions, words
from lathe.store.rag.store import RagStore
from lathe.store.rag.values import SplitterSettings, StoreSettings
from support.rag_embedder import IDENTITY, TextReader, WordEmbedder


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    write(folder, a="cats sleep all day\n\ndogs bark at night", b="weights are quantized", sub__c="a third file")
    return folder


@pytest.fixture
def store(tmp_path: Path):
    settings = StoreSettings(name="s", splitter=SplitterSettings(tokens=16, overlap=0))
    with RagStore.create(tmp_path / "s.db", settings) as made:
        yield made


async def build(store: RagStore, *sources: Path, embedder: WordEmbedder | None = None, **options):
    return await Builder(store, embedder, TextReader(), **options).run([str(source) for source in sources])


async def test_a_folder_becomes_a_store(store: RagStore, folder: Path) -> None:
    embedder = WordEmbedder()
    report = await build(store, folder, embedder=embedder)
    assert (report.files, report.failed, report.unchanged, report.version.added) == (3, 0, 0, 3)
    stats = store.stats()
    assert stats.active is not None and stats.active.embedder == IDENTITY
    assert report.embedded == stats.active.vectors == stats.passages == len(embedder.calls)
    assert [d.path for d in store.read(documents.listing)] == ["docs/a", "docs/b", "docs/sub/c"]
    assert store.verify().sound


async def test_nothing_changed_means_nothing_done(store: RagStore, folder: Path) -> None:
    await build(store, folder, embedder=WordEmbedder())
    again = WordEmbedder()
    report = await build(store, folder, embedder=again)
    assert (report.unchanged, report.embedded, again.calls) == (3, 0, [])
    os.utime(folder / "a")  # touched, but the same
    assert (await build(store, folder, embedder=again)).unchanged == 3
    assert len(store.read(versions.listing)) == 1


async def test_only_changes_are_embedded_and_deletions_disappear(store: RagStore, folder: Path) -> None:
    long = [f"paragraph {n} has quite a few words so that it stands alone" for n in range(5)]
    write(folder, a="\n\n".join(long))
    await build(store, folder, embedder=WordEmbedder())
    write(folder, a="\n\n".join([*long[:2], "a new paragraph that has enough words for a passage", *long[2:]]))
    (folder / "b").unlink()
    embedder = WordEmbedder()
    report = await build(store, folder, embedder=embedder)
    assert embedder.calls == ["a new paragraph that has enough words for a passage"]
    assert (report.version.changed, report.version.removed) == (1, 1)
    assert store.read(lambda db: words.search(db, "quantized", 5)) == []
    assert store.verify().sound


async def test_files_that_fail_are_rows_and_the_run_goes_on(store: RagStore, folder: Path) -> None:
    write(folder, bad="BROKEN", late="fine")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to(folder)
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "folder-link").symlink_to("/")
    report = await build(store, folder, embedder=WordEmbedder())
    failures = {error.path: error.message for error in store.read(documents.failures)}
    assert failures["docs/bad"] == "bad is broken"
    assert "a pipe" in failures["docs/pipe"]
    assert "docs/dangling" in failures and "leads out" in failures["docs/folder-link"]
    assert (report.failed, report.skipped) == (2, 2)
    assert not any("loop/" in path or "folder-link/" in path for path in failures)
    assert report.version.added == 4
    write(folder, bad="mended now")
    await build(store, folder, embedder=WordEmbedder())
    assert "docs/bad" not in {error.path for error in store.read(documents.failures)}


async def test_names_that_are_no_utf8_are_stored_as_text(store: RagStore, folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\x1b[31m.txt")).write_text("odd name")
    await build(store, folder, embedder=WordEmbedder())
    assert any("\\xff" in d.path for d in store.read(documents.listing))


async def test_without_an_embedder_words_are_searched(store: RagStore, folder: Path) -> None:
    report = await build(store, folder)
    assert report.embedded == 0 and store.stats().active is None
    assert len(store.read(lambda db: words.search(db, "cats", 5))) == 1
    assert (await build(store, folder, embedder=WordEmbedder())).embedded == store.stats().passages


async def test_a_missing_source_is_an_error_and_empties_nothing(store: RagStore, folder: Path) -> None:
    await build(store, folder, embedder=WordEmbedder())
    folder.rename(folder.with_name("away"))
    with pytest.raises(MissingError):
        await build(store, folder, embedder=WordEmbedder())
    assert store.stats().documents == 3


async def test_a_failing_embedder_keeps_what_was_done(store: RagStore, folder: Path) -> None:
    async def fail() -> None:
        raise MissingError("the worker is gone")

    with pytest.raises(MissingError, match="the worker is gone"):
        await build(store, folder, embedder=WordEmbedder(before=fail))
    assert store.stats().documents == 3
    report = await build(store, folder, embedder=WordEmbedder())
    assert report.unchanged == 3 and report.embedded == store.stats().passages


async def test_leaving_a_build_ends_it(store: RagStore, folder: Path) -> None:
    entered = asyncio.Event()

    async def hang() -> None:
        entered.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(build(store, folder, embedder=WordEmbedder(before=hang)))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await build(store, folder, embedder=WordEmbedder())).embedded == store.stats().passages


async def test_a_second_embedder_gets_its_own_column(store: RagStore, folder: Path) -> None:
    await build(store, folder, embedder=WordEmbedder())
    other = WordEmbedder(msgspec.structs.replace(IDENTITY, name="other", sha256="01" * 32, dimensions=8))
    builder = Builder(store, other)
    number = await builder.open_column()
    assert store.read(columns.active).embedder == IDENTITY
    assert await builder.embed_all(number) == store.stats().passages


def test_sources_have_short_distinct_names(tmp_path: Path) -> None:
    assert source_names(["/x/docs", "/y/docs", "/z/other"]) == {
        "/x/docs": "docs", "/y/docs": "y/docs", "/z/other": "other",
    }  # fmt: skip


def test_a_file_is_found_again_by_its_name(tmp_path: Path) -> None:
    write(tmp_path, a__one="x", a__in__two="x", b__a__three="x")
    inside, outside, file = str(tmp_path / "a" / "in"), str(tmp_path / "a"), str(tmp_path / "b" / "a" / "three")
    sources = Sources([inside, outside, file])
    for path, name, source in (
        (f"{inside}/two", "in/two", inside),
        (f"{outside}/one", "a/one", outside),
        (file, "three", file),
    ):
        assert sources.cite(path) == (name, source)
        assert sources.path_of(name, source) == path
    assert sources.path_of("other/two", inside) is None
    assert sources.cite("/elsewhere") == ("/elsewhere", "")


async def test_another_recipe_reads_everything_again(store: RagStore, folder: Path) -> None:
    await build(store, folder, embedder=WordEmbedder())
    reader = TextReader()
    embedder = WordEmbedder()
    again = await Builder(store, embedder, reader, everything=True).run([str(folder)])
    assert sorted(reader.read_names) == ["a", "b", "c"]
    assert again.unchanged == 0 and embedder.calls == []  # the words are the same, so the vectors are kept


async def test_a_touched_file_is_read_once_more_only(store: RagStore, folder: Path) -> None:
    await build(store, folder)
    os.utime(folder / "a", ns=(1, 1))
    for expected in (["a"], []):
        reader = TextReader()
        await Builder(store, None, reader).run([str(folder)])
        assert reader.read_names == expected
    assert store.verify().sound
