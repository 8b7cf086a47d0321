"""Other programs' stores: Ollama's manifests and blobs, the Hugging Face cache, LM Studio; and forged ones."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lathe.engine.catalogue import huggingface, ollama
from lathe.engine.catalogue.places import standard_places
from lathe.engine.catalogue.recognise import Candidate
from lathe.engine.catalogue.walk import Folder, Place, Problem, list_folder, walk
from lathe.engine.embedded import CHECKPOINT

HEX = hashlib.sha256(b"weights").hexdigest()


def manifest(root: Path, name: str, digest: str, *more: dict[str, str]) -> Path:
    path = root / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": 7}, *more]
    path.write_text(json.dumps({"schemaVersion": 2, "config": {"digest": digest}, "layers": layers}))
    return path


def blob(root: Path, content: bytes = b"weights") -> str:
    digest = hashlib.sha256(content).hexdigest()
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    (root / "blobs" / f"sha256-{digest}").write_bytes(content)
    return f"sha256:{digest}"


def read(root: Path) -> tuple[list[Candidate], list[Problem]]:
    found = list(ollama.read_store(root))
    return [e for e in found if isinstance(e, Candidate)], [e for e in found if isinstance(e, Problem)]


# -- Ollama ----------------------------------------------------------------------------------------------------------


def test_an_ollama_store_is_read_by_its_manifests(tmp_path: Path) -> None:
    digest = blob(tmp_path)
    template = {"mediaType": "application/vnd.ollama.image.template", "digest": blob(tmp_path, b"template")}
    manifest(tmp_path, "registry.ollama.ai/library/qwen3/8b", digest, template)
    manifest(tmp_path, "registry.ollama.ai/someone/gemma/latest", digest)
    manifest(tmp_path, "hf.co/org/repo/Q4_K_M", digest)
    candidates, problems = read(tmp_path)
    assert problems == []
    assert [each.name for each in candidates] == ["hf.co/org/repo:Q4_K_M", "qwen3:8b", "someone/gemma:latest"]
    assert {each.path for each in candidates} == {tmp_path / "blobs" / f"sha256-{HEX}"}
    assert {(each.format, each.origin, each.size) for each in candidates} == {("gguf", "ollama", 7)}


def test_the_walk_sees_the_store_and_stays_out_of_it(tmp_path: Path) -> None:
    blob(tmp_path / "models")
    manifest(tmp_path / "models", "registry.ollama.ai/library/a/b", f"sha256:{HEX}")
    folders = [each for each in walk([Place(tmp_path)], ollama.is_store) if isinstance(each, Folder)]
    assert [ollama.is_store(folder) for folder in folders] == [False, True]


NONSENSE = [
    b"",
    b"{",
    b"[]",
    b'{"layers": 5}',
    b'{"layers": [{"digest": 5, "mediaType": ""}]}',
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"layers": []}',
    b'{"layers": [' + b" " * (1 << 20) + b"]}",
]


@pytest.mark.parametrize("content", NONSENSE, ids=range(len(NONSENSE)))
def test_manifests_that_make_no_sense_are_problems(tmp_path: Path, content: bytes) -> None:
    path = manifest(tmp_path, "registry.ollama.ai/library/a/b", blob(tmp_path))
    path.write_bytes(content)
    candidates, (problem,) = read(tmp_path)
    assert (candidates, problem.code, problem.path) == ([], "E_OLLAMA", str(path))


def test_a_manifest_with_several_models_or_a_missing_blob_is_a_problem(tmp_path: Path) -> None:
    digest = blob(tmp_path)
    manifest(tmp_path, "h/n/m/two", digest, {"mediaType": "application/vnd.ollama.image.model", "digest": digest})
    manifest(tmp_path, "h/n/m/gone", f"sha256:{'0' * 64}")
    candidates, problems = read(tmp_path)
    assert candidates == []
    assert [problem.code for problem in problems] == ["E_NOT_FOUND", "E_OLLAMA"]


def test_odd_things_among_the_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest(tmp_path, "h/n/m/good", blob(tmp_path))
    (tmp_path / "manifests" / "file").touch()
    (tmp_path / "manifests" / "h" / "n" / "m" / "too" / "deep").mkdir(parents=True)
    os.mkfifo(tmp_path / "manifests" / "h" / "n" / "m" / "pipe")
    closed = tmp_path / "manifests" / "closed"
    closed.mkdir()
    iterdir = Path.iterdir

    def refusing(path: Path):
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refusing)
    (candidate,), problems = read(tmp_path)
    assert candidate.name == "h/n/m:good"
    assert [(Path(problem.path).name, problem.code) for problem in problems] == [
        ("closed", "E_PERMISSION"), ("pipe", "E_IO"),
    ]  # fmt: skip


def test_links_in_a_store_lead_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"weights")
    root = tmp_path / "store"
    (root / "blobs").mkdir(parents=True)
    (root / "blobs" / f"sha256-{HEX}").symlink_to(secret)
    manifest(root, "h/n/m/t", f"sha256:{HEX}")
    (root / "manifests" / "loop").symlink_to(root / "manifests")
    candidates, (problem,) = read(root)
    assert (candidates, problem.code) == ([], "E_UNSAFE")


TRAVERSALS = st.one_of(
    st.text(max_size=80),
    st.text("0123456789abcdefABCDEF./\\:-\0\n ", max_size=80),
    st.sampled_from(["sha256:", "sha256-", "sha512:", "SHA256:", "", "sha256:../"]).flatmap(
        lambda prefix: st.text("0123456789abcdef./\n\0", min_size=60, max_size=70).map(lambda rest: prefix + rest)
    ),
    st.sampled_from([
        "sha256:../../../../etc/passwd", "sha256:" + "a" * 63 + "/", "sha256:" + "a" * 64 + "\n",
        "sha256:C:\\" + "a" * 61,
        "sha256:" + "a" * 5000, "sha256:" + "A" * 64, "sha256:" + "٠" * 64, "sha256:" + "/" * 64, "sha256:" + "." * 64,
        "sha256:\0" + "a" * 63, "../sha256:" + "a" * 64, " sha256:" + "a" * 64,
    ]),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(TRAVERSALS)
def test_no_digest_leads_out_of_the_store(digest: str) -> None:
    root = Path("/nonexistent/store")
    path = ollama.blob_path(root, digest)
    if path is not None:
        assert path.parent == root / "blobs"
        assert path.name.removeprefix("sha256-") == digest.removeprefix("sha256:")
        assert len(digest) == 71
        assert set(digest.removeprefix("sha256:")) <= set("0123456789abcdef")


@pytest.mark.shared
def test_no_naughty_string_is_a_digest(shared_data: Path) -> None:
    for text in json.loads((shared_data / "robustness" / "blns" / "blns.json").read_text()):
        for digest in (
            text,
            f"sha256:{text}",
            f"sha256:{HEX}{text}" if text else "",
            f"{text}sha256:{HEX}" if text else "",
        ):
            assert ollama.blob_path(Path("/nonexistent"), digest) is None


# -- Hugging Face ----------------------------------------------------------------------------------------------------


def test_snapshots_are_named_after_their_repository(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--Qwen--Qwen3-0.6B--beta"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc1234def\n")
    current, older = repository / "snapshots" / "abc1234def", repository / "snapshots" / "0123456789"
    assert huggingface.repository_name(current) == "Qwen3-0.6B--beta"
    assert huggingface.repository_name(current / "sub" / "x.gguf") == "Qwen3-0.6B--beta"
    assert huggingface.repository_name(older) == "Qwen3-0.6B--beta@0123456"
    assert huggingface.is_cached(older / "x")
    local = tmp_path / "models--gpt2" / "snapshots" / "r"
    assert huggingface.repository_name(local) == "gpt2"
    for other in (
        tmp_path,
        repository,
        repository / "blobs" / "x",
        repository / "snapshots",
        Path("/"),
        Path("models--"),
    ):
        assert huggingface.repository_name(other) is None
        assert not huggingface.is_cached(other)


def test_a_ref_that_is_no_text_is_ignored(tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_bytes(b"\xff" * 10_000)
    assert huggingface.repository_name(repository / "snapshots" / "r1") == "b"


# -- where they lie --------------------------------------------------------------------------------------------------


def test_standard_places_follow_each_programs_settings(tmp_path: Path) -> None:
    home, models = tmp_path / "home", tmp_path / "workspace"
    expected = [
        Place(CHECKPOINT, "embedded"), Place(models), Place(home / ".cache/huggingface/hub", "hf-cache"),
        Place(home / ".ollama/models", "ollama"), Place(home / ".lmstudio/models", "lm-studio"),
        Place(home / ".cache/lm-studio/models", "lm-studio"),
    ]  # fmt: skip
    for place in expected[1:]:
        place.path.mkdir(parents=True)
    machine = {Path("/usr/share/ollama/.ollama/models"), Path("/var/lib/ollama")}
    places = [place for place in standard_places(models, {"HOME": str(home)}) if place.path not in machine]
    assert places == expected

    hub, blobs, studio = tmp_path / "hub", tmp_path / "blobs", tmp_path / "studio"
    for folder in (hub, blobs, studio / "downloads", studio / "models"):
        folder.mkdir(parents=True)
    (home / ".lmstudio-home-pointer").write_text(f"{studio}\n")
    (studio / "settings.json").write_text(json.dumps({"downloadsFolder": str(studio / "downloads")}))
    environment = {"HOME": str(home), "HF_HUB_CACHE": str(hub), "OLLAMA_MODELS": str(blobs)}
    chosen = [(place.path, place.origin) for place in standard_places(models, environment)]
    assert {(hub, "hf-cache"), (blobs, "ollama"), (studio / "downloads", "lm-studio")} <= set(chosen)
    assert (home / ".cache/huggingface/hub", "hf-cache") not in chosen
    (tmp_path / "hf" / "hub").mkdir(parents=True)
    environment = {"HOME": str(home), "HF_HOME": str(tmp_path / "hf")}
    assert (tmp_path / "hf" / "hub", "hf-cache") in standard_places(models, environment)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "[" * 100_000, '{"downloadsFolder": 5}', '{"downloadsFolder": "\\u0000"}'], ids=range(6)
)
def test_settings_of_others_that_make_no_sense_are_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / ".lmstudio" / "models").mkdir(parents=True)
    (tmp_path / ".lmstudio" / "settings.json").write_text(content)
    (tmp_path / ".lmstudio-home-pointer").write_bytes(b"\xff\0")
    places = standard_places(tmp_path / "none", {"HOME": str(tmp_path)})
    assert Place(tmp_path / ".lmstudio" / "models", "lm-studio") in places


def test_a_file_where_a_store_should_be_is_no_place(tmp_path: Path) -> None:
    (tmp_path / ".ollama").mkdir()
    (tmp_path / ".ollama" / "models").touch()
    assert not any(
        str(tmp_path) in str(place.path) for place in standard_places(tmp_path / "x", {"HOME": str(tmp_path)})
    )
    assert list_folder(tmp_path).folders == (".ollama",)
