"""The app in a real terminal (F31): signals, a line that drops, storms of resizes, terminals that cannot show it."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lathe.engine.errors import ExitCode
from support.terminal import LEAVES_ALTERNATE_SCREEN, SHOWS_CURSOR, Terminal

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
"""Processes that share tests have a second thread; after the fork there is nothing but an exec."""
SCRIPT = Path(__file__).resolve().parents[1] / "support" / "run_scripted_tui.py"
APP = [sys.executable, str(SCRIPT)]
LATHE = [sys.executable, "-m", "lathe.tui.main"]


def test_quitting_leaves_the_terminal_as_it_was() -> None:
    with Terminal(APP) as terminal:
        terminal.read_until("Dash")
        terminal.press("\x11")
        assert terminal.ended() == 0
        assert LEAVES_ALTERNATE_SCREEN in terminal.output and SHOWS_CURSOR in terminal.output


def test_the_settings_of_the_line_are_what_they_were() -> None:
    program = "import subprocess, sys, termios; b = termios.tcgetattr(0); subprocess.run(sys.argv[1:]); "
    program += "print('SAME' if termios.tcgetattr(0) == b else 'OTHER')"
    with Terminal([sys.executable, "-c", program, *APP]) as terminal:
        terminal.read_until("Dash")
        terminal.press("\x11")
        terminal.read_until("SAME")
        assert terminal.ended() == 0


def test_no_color_means_no_colour() -> None:
    with Terminal(APP, environment={"NO_COLOR": "1"}) as terminal:
        terminal.read_until("Dash")
        for key in "24079":
            terminal.press(key)
            terminal.settle()
        terminal.press("\x11")
        assert terminal.ended() == 0
        sequences = re.findall(rb"\x1b\[([0-9;:]*)m", terminal.output)
        coloured = re.compile(rb"(?:^|;)(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;|:|$)")
        assert sequences and not [codes for codes in sequences if coloured.search(codes)]


def test_without_a_terminal_there_is_one_line_and_not_one_escape(tmp_path: Path) -> None:
    done = subprocess.run(
        LATHE, input="", capture_output=True, text=True, env={**os.environ, "LATHE_HOME": str(tmp_path)}
    )
    assert done.returncode == ExitCode.USAGE
    assert "no terminal here" in done.stderr and "\x1b" not in done.stderr + done.stdout
    assert not list(tmp_path.iterdir())


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
