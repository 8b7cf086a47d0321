"""Programs of a model run, fail, and cannot leave their folder, their process or the machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from lathe.engine.errors import ConfigError, UnavailableError
from lathe.engine.evals.metrics.code import code_of
from lathe.engine.evals.metrics.metric import Finding, Metric
from lathe.engine.evals.metrics.registry import metrics_of
from lathe.engine.evals.sandbox import confine, running
from lathe.engine.evals.sandbox.running import Limits, Ran, run_program
from lathe.engine.evals.values import Item, Response, Task

pytestmark = pytest.mark.skipif(confine.unavailable() is not None, reason=str(confine.unavailable()))
QUICK = Limits(seconds=5, memory_bytes=256 * 1024**2)


def _run(source: str, limits: Limits = QUICK) -> Ran:
    return run_program(source, limits)


def test_only_a_program_that_ran_to_its_end_passes() -> None:
    assert _run("assert 1 + 1 == 2").passed
    assert _run("assert 1 + 1 == 3").reason == "AssertionError"
    for early in ("exit(0)", "raise SystemExit", "import os; os._exit(0)", "import os; os._exit(96)"):
        assert not _run(early + "\nassert False").passed
    assert _run("def f(:").reason.startswith("SyntaxError")


@pytest.mark.parametrize(
    "source",
    [
        "import socket; socket.socket()",
        "import socket; socket.socketpair()",
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.execv('/bin/true', ['true'])",
        "import ctypes; assert ctypes.CDLL(None).system(b'true') == 0",
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.kill(os.getpid(), 9)",
        "import os; os.listdir('/')",
        "open('/etc/passwd')",
        "open('/proc/self/environ')",
        "open('/dev/shm/x', 'w')",
        "import os; os.symlink('/etc/passwd', 'l'); open('l')",
        "import os; os.chmod('.', 0o777)",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99))",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1')",
        "import multiprocessing as m; m.Process(target=print).start()",
        "import ctypes; c = ctypes.CDLL(None, use_errno=True); assert c.syscall(425, 4, 0) >= 0",
    ],
)
def test_nothing_leaves(source: str) -> None:
    assert not _run(source).passed


def test_what_a_test_needs_is_there(tmp_path: Path) -> None:
    assert _run(
        "import json, re, math, collections, threading\nopen('x', 'w').write('y'); assert open('x').read() == 'y'"
    ).passed
    assert _run(
        "import threading\nt = threading.Thread(target=print, args=('in a thread',)); t.start(); t.join()"
    ).passed
    outside = tmp_path / "secret.txt"
    outside.write_text("hunter2")
    assert "hunter2" not in _run(f"print(open({str(outside)!r}).read())").output
    assert "LATHE_HOME" not in _run("import os; print(dict(os.environ))").output


def test_time_memory_and_output_are_limited() -> None:
    late = Limits(seconds=0.5, memory_bytes=256 * 1024**2)
    assert _run("while True: pass", late).reason == "took longer than 0.5 s"
    assert _run("import time; time.sleep(60)", late).reason == "took longer than 0.5 s"
    assert _run("bytearray(10**9)").reason == "MemoryError"
    assert not _run("open('big', 'wb').write(b'0' * 10**7)").passed
    noisy = _run("print('x' * 10**7)")
    assert not noisy.passed
    assert len(noisy.output) <= 2000


def _metric(**options: object) -> Metric:
    return metrics_of(Task(id="t", kind="generate", cases=(), metrics=({"code": options},)))[0]


def test_answers_become_programs_by_the_suites_template() -> None:
    metric = _metric(program="{{ prompt }}{{ answer }}\n{{ test }}", seconds=5)
    item = Item(
        task="t", case="c", kind="generate", context="def add(a, b):\n", fields={"test": "assert add(2, 3) == 5"}
    )
    assert metric.judge is not None
    right = metric.judge(item, Response(text="    return a + b\n"))
    wrong = metric.judge(item, Response(text="    return a - b\n"))
    assert isinstance(right, Finding)
    assert isinstance(wrong, Finding)
    assert (right.statistics, right.note) == ((1.0, 1.0), "passed")
    assert (wrong.statistics, wrong.note) == ((0.0, 1.0), "AssertionError")


def test_a_fenced_answer_is_unwrapped() -> None:
    assert code_of("Sure:\n```python\nx = 1\n```\nDone.") == "x = 1"
    assert code_of("```py\nx = 1") == "x = 1"
    assert code_of("x = 1") == "x = 1"


def test_a_machine_without_walls_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "unavailable", lambda: "no walls")
    with pytest.raises(UnavailableError, match="no walls"):
        _metric()
    with pytest.raises(UnavailableError):
        _run("x = 1")


@pytest.mark.parametrize("options", [{"seconds": 0}, {"memory_mib": 1}, {"program": "{{ x"}, {"sandbox": False}])
def test_wrong_options_are_told(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        _metric(**options)
