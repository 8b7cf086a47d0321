"""From key press to paint while eight streams run: one in the Playground, seven by HTTP.

    python benchmarks/key_to_paint.py [--presses 300] [--streams 7]

The TUI runs in a pseudo-terminal on the embedded model. Every press is a letter that nothing else on the screen holds,
typed into the prompt; the time until its bytes come back is the figure. Every tenth press sends the prompt, so that an
answer of the embedded model streams beside it. Uses a workspace of its own; model workers, server and clients share the
machine with the TUI, and the embedded model asks most of them: it makes thousands of tokens per second.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from _peers import embedded_model, table
from _random_model import random_model
from _terminal import LATHE, Terminal

MODEL, LARGER = "stdlib-4m-F16", "random-160m"
LETTERS = [chr(code) for code in range(0x100, 0x180) if chr(code).isalpha()]


def lathe(*arguments: str) -> str:
    """Run a command and return what it prints."""
    return subprocess.run([*LATHE, *arguments], check=True, capture_output=True, text=True).stdout


def stream(url: str, model: str, count: int) -> None:
    """Keep `count` long answers streaming until killed."""
    address = urlsplit(url)

    def one(number: int) -> None:
        body = {"model": model, "prompt": f"{number} ", "max_tokens": 900, "stream": True, "ignore_eos": True}
        connection = HTTPConnection(address.hostname or "", address.port)
        while True:
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            while answer.read1(65536):
                pass

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(one, range(count)))


def type_letters(presses: int) -> list[float | None]:
    """Seconds from press to paint of every letter."""
    terminal = Terminal()
    terminal.listen(3)
    terminal.press("0")
    terminal.listen(3)
    times = []
    for number in range(presses):
        letter = LETTERS[number % len(LETTERS)]
        terminal.press(letter)
        times.append(terminal.read_until(letter, 5))
        if number % 10 == 9:
            terminal.press("\r")
        terminal.listen(0.05 + 0.013 * (number % 7))  # nobody types in step with the frames
    terminal.close()
    return times


def percentile(values: list[float], share: float) -> float:
    """The value that this share does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> int:
    """Measure at rest and under load, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presses", type=int, default=300)
    parser.add_argument("--streams", type=int, default=7)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LATHE_HOME"] = str(Path(folder) / "home")
        lathe("convert", "stdlib-4m", "--outtype", "f16")
        random_model(embedded_model(Path(folder)), Path(folder) / f"{LARGER}.gguf", "160m")
        lathe("models", "scan", folder)
        flags = ("--threads", "1", "--parallel", "8", "--port", "0", "--no-token", "--detach", "--json")
        url = json.loads(lathe("serve", MODEL, LARGER, *flags))["server"]["url"]
        try:
            for streams, model in ((0, MODEL), (arguments.streams, LARGER), (arguments.streams, MODEL)):
                clients = multiprocessing.Process(target=stream, args=(url, model, streams), daemon=True)
                if streams:
                    clients.start()
                times = type_letters(arguments.presses)
                if streams:
                    clients.kill()
                seen = [1000 * time for time in times if time is not None]
                figures = statistics.median(seen), percentile(seen, 0.95), max(seen)
                what = f"{streams} by HTTP on {model}" if streams else "none by HTTP"
                rows.append([what, *(f"{figure:.1f}" for figure in figures), str(len(times) - len(seen))])
        finally:
            lathe("engine", "stop")
    table(["streams", "p50 ms", "p95 ms", "max ms", "never painted"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
