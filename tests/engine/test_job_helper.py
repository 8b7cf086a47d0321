"""Work that jobs give to processes of their own: answers, refusals, deaths, and a clean environment."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from lathe.engine.errors import CrashedError, DataError, LatheError, TimeoutExpired
from lathe.engine.jobs import helper


class Order(msgspec.Struct):
    what: str


class Report(msgspec.Struct):
    text: str
    offline: str


MODULE = """
import os, sys, time
import msgspec
from lathe.engine.errors import DataError
from lathe.engine.jobs import helper
class Order(msgspec.Struct):
    what: str
class Report(msgspec.Struct):
    text: str
    offline: str
def work(order):
    print("chatter of a library")
    match order.what:
        case "die": os.kill(os.getpid(), 9)
        case "refuse": raise DataError("broken input", hint="mend it")
        case "sleep": time.sleep(60)
        case "lie":
            return Order("not a report")
    return Report(os.environ.get("SECRET_TOKEN", "none"), os.environ["HF_HUB_OFFLINE"])
helper.serve(Order, work)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "helper_under_test.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return "helper_under_test"


def test_a_helper_answers_and_has_no_secrets(
    module: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hf_12345")
    answer = helper.ask(module, Order("work"), Report, role="the helper")
    assert answer == Report("none", "1")
    assert "chatter of a library" in capfd.readouterr().err, "what it prints becomes the job's log"


def test_what_a_helper_reports_is_raised_as_it_was(module: str) -> None:
    with pytest.raises(DataError, match="broken input") as caught:
        helper.ask(module, Order("refuse"), Report, role="the helper")
    assert caught.value.hint == "mend it"


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [("die", CrashedError, "killed"), ("lie", CrashedError, "cannot be read"), ("sleep", TimeoutExpired, "more than")],
)
def test_a_helper_that_dies_lies_or_hangs_is_an_error(
    module: str, what: str, kind: type[LatheError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        helper.ask(module, Order(what), Report, role="the helper", timeout_s=3 if what == "sleep" else 60)
