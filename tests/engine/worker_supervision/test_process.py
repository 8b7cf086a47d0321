"""Child processes: started clean, explained when they die, never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from lathe.engine import process
from lathe.engine.childlog import ChildLog
from lathe.engine.errors import CrashedError
from support.waiting import until

TESTS = str(Path(__file__).resolve().parents[2])


async def start(tmp_path: Path, *arguments: str, env: dict[str, str] | None = None) -> process.Child:
    return await process.spawn(
        "support.scripted_child",
        role="worker toy",
        log_path=tmp_path / "toy.log",
        extra_args=arguments,
        env={"PYTHONPATH": TESTS} | (env or {}),
    )


async def first(child: process.Child) -> object:
    async for message in child.messages(object):
        return message
    raise AssertionError(f"the child said nothing: {child.tail()}")


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_messages_go_both_ways(tmp_path: Path) -> None:
    child = await start(tmp_path, "echo")
    await child.send({"a": [1, 2]})
    assert await first(child) == {"a": [1, 2]}
    child.close()
    cause = await child.wait()
    assert cause.clean and cause.code == 0
    assert child.exit_cause == cause


async def test_secrets_and_the_terminal_stay_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "LATHE_API_KEY", "HF_TOKEN", "SSH_AUTH_SOCK", "LD_PRELOAD_X", "MY_THING"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    child = await start(tmp_path, "environment", env={"LATHE_EXTRA": "1"})
    replies = [message async for message in child.messages(dict)]
    environment, facts = replies
    assert "hunter2" not in environment.values()
    assert environment["CUDA_VISIBLE_DEVICES"] == "0" and environment["LATHE_EXTRA"] == "1"
    assert environment["GOMP_SPINCOUNT"] == "300"
    assert facts == {"session": child.pid, "stdin": "/dev/null"}
    await child.stop()


def test_how_threads_wait_is_the_users_where_he_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert process.child_environment(process.eager_environment())["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "GOMP_SPINCOUNT" not in process.child_environment(process.eager_environment())


def test_threads_spin_for_long_only_where_the_kernel_tells_that_they_should_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "exists", lambda _path: True)
    assert int(process.child_environment(process.eager_environment())["GOMP_SPINCOUNT"]) > 10_000
    monkeypatch.setattr(Path, "exists", lambda _path: False)
    assert process.eager_environment() == {}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("segfault",), "crashed (segmentation fault)"),
        (("signal", str(int(signal.SIGABRT))), "crashed (abort)"),
        (("signal", str(int(signal.SIGFPE))), "crashed (arithmetic error)"),
        (("signal", str(int(signal.SIGKILL))), "was killed by another process"),
        (("exit", "3", "bad", "thing"), "exited with code 3"),
        (("exit", "1", "CUDA error: out of memory"), process.OUT_OF_MEMORY),
    ],
)
async def test_every_death_has_a_plain_cause(tmp_path: Path, arguments: tuple[str, ...], reason: str) -> None:
    child = await start(tmp_path, *arguments)
    cause = await child.wait()
    assert cause.reason == reason
    assert not cause.clean
    failure = cause.failure("worker toy")
    assert failure.message.startswith(f"worker toy {reason}") and failure.code == "E_ENGINE_CRASH"
    await child.stop()


async def test_the_failure_quotes_the_last_words(tmp_path: Path) -> None:
    child = await start(tmp_path, "exit", "3", "unknown", "tensor", "type")
    cause = await child.wait()
    assert cause.failure("worker toy").message == "worker toy exited with code 3: unknown tensor type"
    await child.stop()


async def test_a_segfault_leaves_a_trace_in_the_log(tmp_path: Path) -> None:
    child = await start(tmp_path, "segfault")
    await child.wait()
    assert "Fatal Python error: Segmentation fault" in (tmp_path / "toy.log").read_text()
    assert (tmp_path / "toy.log").stat().st_mode & 0o777 == 0o600
    await child.stop()


async def test_an_oom_kill_is_told_from_any_other_kill() -> None:
    assert process.explain(-signal.SIGKILL, oom_killed=True).reason == process.OUT_OF_MEMORY
    assert process.explain(-signal.SIGABRT, ["terminate called: std::bad_alloc"]).out_of_memory
    assert process.explain(-signal.SIGKILL, requested=True).clean
    assert not process.explain(-signal.SIGSEGV, requested=True).clean


def test_a_signal_without_a_name_is_a_cause_too() -> None:
    assert process.explain(-40).reason == "died of signal 40"
    assert process.explain(-signal.SIGUSR1).reason == "died of SIGUSR1"


async def test_a_child_that_ignores_term_is_killed_with_its_helpers(tmp_path: Path) -> None:
    child = await start(tmp_path, "stubborn")
    helper = await first(child)
    cause = await child.stop(grace_s=0.2)
    assert cause.signal == signal.SIGKILL and cause.clean
    await until(lambda: gone(helper))


async def test_a_stopped_child_can_be_killed(tmp_path: Path) -> None:
    child = await start(tmp_path, "echo")
    await child.send("up")
    await first(child)
    os.kill(child.pid, signal.SIGSTOP)
    cause = await child.stop(grace_s=0.1)
    assert cause.clean and cause.reason == "was stopped"  # kernels differ in which of the two signals they report


async def test_helpers_do_not_survive_their_leader(tmp_path: Path) -> None:
    child = await start(tmp_path, "helper")
    helper = await first(child)
    assert (await child.wait()).code == 0
    await until(lambda: gone(helper))
    await child.stop()


async def test_sending_to_a_dead_child_is_a_typed_error(tmp_path: Path) -> None:
    child = await start(tmp_path, "exit", "0")
    await child.wait()
    with pytest.raises(CrashedError, match="worker toy"):
        for _ in range(50):
            await child.send("anyone there?")
    await child.stop()


async def test_stop_cancelled_midway_kills_at_once(tmp_path: Path) -> None:
    child = await start(tmp_path, "stubborn")
    await first(child)
    stopping = asyncio.create_task(child.stop(grace_s=600))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert (await child.wait()).signal == signal.SIGKILL


def test_a_flood_stays_within_the_cap(tmp_path: Path) -> None:
    cap = 64 * 1024
    read_end, write_end = os.pipe()
    log = ChildLog(read_end, tmp_path / "toy.log", cap)
    log.start()

    def flood() -> None:
        for number in range(2048):
            os.write(write_end, b"x" * 1023 + b"\n" if number < 2047 else b"the last line\n")
        os.close(write_end)

    writer = threading.Thread(target=flood)
    writer.start()
    writer.join()
    log.join(10)
    assert log.tail(1) == ["the last line"]
    sizes = [path.stat().st_size for path in tmp_path.glob("toy.log*")]
    assert len(sizes) == 2 and sum(sizes) <= cap


async def test_a_log_that_cannot_be_written_disturbs_nobody(tmp_path: Path) -> None:
    (tmp_path / "toy.log").mkdir()
    child = await start(tmp_path, "flood", "100")
    assert (await child.wait()).code == 0
    assert child.tail(1) == ["the last line"]
    await child.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's; elsewhere a thread polls")
async def test_a_child_stuck_in_native_code_dies_with_its_parent(tmp_path: Path) -> None:
    """F22, the hard case: kill -9 of the parent while the child holds the interpreter lock in a native call."""
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from lathe.engine import process\n"
        "async def main():\n"
        "    child = await process.spawn('support.scripted_child', role='t', log_path=Path(sys.argv[1]),\n"
        "                                extra_args=['stuck'])\n"
        "    async for pid in child.messages(int):\n"
        "        print(pid, flush=True)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, str(tmp_path / "t.log")),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": TESTS},
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert oom_score(pid) == 1000
    parent.kill()
    await parent.wait()
    await until(lambda: gone(pid), 2.0)


def oom_score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())
