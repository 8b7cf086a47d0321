"""Hashing behind a writer: the same digest as reading afterwards, and none where the file is another than foreseen."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lathe.quantize import quantizer
from lathe.quantize.artefact import file_sha256
from lathe.quantize.follower import Follower
from lathe.quantize.imatrix import Entry, Imatrix, write_imatrix
from lathe.quantize.plan import QuantizeOptions
from lathe.quantize.quantizer import quantize_gguf

HEAD, BODY = b"head" * 16, bytes(range(256)) * 500


def written(path: Path, head: bytes, body: bytes, follower: Follower) -> str | None:
    """Write a file as the quantizer does; its digest, as the follower has it."""
    with follower, path.open("r+b", buffering=0) as file:
        file.write(bytes(len(head)))
        for start in range(0, len(body), 1000):
            file.write(body[start : start + 1000])
            follower.written(len(head) + start)
        file.seek(0)
        file.write(head)
        return follower.digest()


def test_the_digest_is_the_files(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.touch()
    found = written(path, HEAD, BODY, Follower(path, HEAD, len(HEAD) + len(BODY)))
    assert found == hashlib.sha256(HEAD + BODY).hexdigest() == file_sha256(path)


@pytest.mark.parametrize(
    ("head", "size"),
    [(b"dead" * 16, len(HEAD) + len(BODY)), (HEAD, len(HEAD) + len(BODY) + 1), (HEAD, len(HEAD) + len(BODY) - 1)],
    ids=["another head", "a shorter file", "a longer file"],
)
def test_what_was_not_foreseen_has_no_digest(tmp_path: Path, head: bytes, size: int) -> None:
    path = tmp_path / "out"
    path.touch()
    assert written(path, HEAD, BODY, Follower(path, head, size)) is None


def test_another_file_of_that_name_has_no_digest(tmp_path: Path) -> None:
    path, other = tmp_path / "out", tmp_path / "other"
    path.touch()
    other.write_bytes(HEAD + BODY)
    follower = Follower(path, HEAD, len(HEAD) + len(BODY))
    with follower, path.open("r+b") as file:
        file.write(HEAD + BODY)
        file.flush()
        other.replace(path)
        assert follower.digest() is None


@pytest.mark.native
@pytest.mark.parametrize(
    "fields",
    [
        {"type": "Q4_K_M"}, {"type": "Q8_0", "prune_layers": (1,)}, {"type": "COPY"}, {"type": "F32"},
        {"type": "Q8_0", "metadata": {"a.count": -3, "a.share": 1.5, "a.truth": True, "general.name": "renamed"}},
    ],
    ids=lambda fields: "-".join(fields),
)  # fmt: skip
def test_the_quantizer_writes_the_head_that_was_foreseen(
    embedded_gguf: Path, tmp_path: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(path: Path, *_: object) -> str:
        raise AssertionError(f"{path} is read again")

    matrix = tmp_path / "matrix.gguf"
    entries = {"blk.0.attn_q.weight": Entry(np.ones((1, 256), np.float32), np.array([64]))}
    write_imatrix(matrix, Imatrix(entries=entries, datasets=("made up",), chunks=3))
    monkeypatch.setattr(quantizer, "file_sha256", never)
    for imatrix in (None, matrix):
        output = tmp_path / f"{imatrix is None}.gguf"
        report = quantize_gguf(embedded_gguf, output, QuantizeOptions(threads=1, imatrix=imatrix, **fields))
        assert report.sha256 == (file_sha256(output),)


@pytest.mark.native
def test_a_head_that_came_out_otherwise_costs_a_second_reading(
    embedded_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreseen = quantizer._Request.head
    monkeypatch.setattr(quantizer._Request, "head", lambda self, plan: foreseen(self, plan)[:-1] + b"x")
    report = quantize_gguf(embedded_gguf, tmp_path / "out.gguf", QuantizeOptions(type="Q8_0", threads=1))
    assert report.sha256 == (file_sha256(tmp_path / "out.gguf"),)
