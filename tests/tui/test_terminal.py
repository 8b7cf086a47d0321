"""The app in a real terminal (F31): signals, a line that drops, storms of resizes, terminals that cannot show it."""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

import pytest
from lathe.engine.errors import ExitCode
from support.terminal import LEAVES_ALTERNATE_SCREEN, SHOWS_CURSOR, Terminal

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "run_scripted_tui.py"
APP = [sys.executable, str(SCRIPT)]
LATHE = [sys.executable, "-m", "lathe.tui.main"]


def test_quitting_leaves_the_terminal_as_it_was() -> None:
    with Terminal(APP) as terminal:
        terminal.read_until("Dash")
        terminal.press("\x11")
        assert terminal.ended() == 0
        assert LEAVES_ALTERNATE_SCREEN in terminal.output and SHOWS_CURSOR in terminal.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_it_and_leaves_the_terminal_as_it_was(number: signal.Signals) -> None:
    with Terminal(APP) as terminal:
        terminal.read_until("Dash")
        os.kill(terminal.pid, number)
        assert terminal.ended() in (0, 128 + number)
        assert LEAVES_ALTERNATE_SCREEN in terminal.output and SHOWS_CURSOR in terminal.output
        assert b"Traceback" not in terminal.output


def test_a_line_that_drops_ends_it() -> None:
    with Terminal(APP) as terminal:
        terminal.read_until("Dash")
        terminal.drop()
        terminal.ended()


def test_a_storm_of_resizes_is_survived() -> None:
    chance = random.Random(7)
    with Terminal(APP) as terminal:
        terminal.read_until("Dash")
        for _ in range(60):
            terminal.resize(chance.choice([1, 5, 20, 39, 80, 132, 300]), chance.choice([1, 2, 5, 12, 24, 50, 100]))
            terminal.press(chance.choice(["1", "2", "0", "7", "\x1b", "?"]))
        terminal.press("\x1b\x1b\x1b")
        terminal.resize(100, 30)
        terminal.read_until("Dash")
        terminal.press("\x11")
        assert terminal.ended() == 0
        assert b"Traceback" not in terminal.output


def test_a_window_of_twenty_by_five_shows_something_and_quits() -> None:
    with Terminal(APP, size=(20, 5)) as terminal:
        terminal.read_until("lathe")
        terminal.press("\x11")
        assert terminal.ended() == 0


def test_a_plain_locale_gets_plain_signs() -> None:
    with Terminal(APP, environment={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}) as terminal:
        terminal.read_until("Dash")
        terminal.press("\x11")
        assert terminal.ended() == 0
        terminal.output.decode("ascii")


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_cannot_show_it_gets_one_line(term: str, tmp_path: Path) -> None:
    with Terminal(LATHE, environment={"TERM": term, "LATHE_HOME": str(tmp_path)}) as terminal:
        assert terminal.ended() == ExitCode.USAGE
        assert b"lathe --batch" in terminal.output and b"Traceback" not in terminal.output
