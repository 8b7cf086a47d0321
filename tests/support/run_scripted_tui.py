"""Run the terminal app on the scripted workbench, for looking at it and for tests in a real terminal.

python tests/support/run_scripted_tui.py [--empty] [--mode models] [--theme NAME] [--glyphs SET] [--read-only]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lathe.tui.app import LatheApp
from support.scripted_workbench import ScriptedWorkbench


class LivingWorkbench(ScriptedWorkbench):
    """The script, with time that passes by itself."""

    async def play(self) -> None:
        """Move on once a second."""
        while True:
            await asyncio.sleep(1)
            self.advance(1)


def main() -> None:
    """Parse the flags and run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--empty", action="store_true")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--mode", default="dashboard")
    parser.add_argument("--theme")
    parser.add_argument("--glyphs", default="auto")
    parser.add_argument("--token-s", type=float, default=0.02)
    flags = parser.parse_args()
    bench = LivingWorkbench(living=not flags.empty, token_s=flags.token_s, load_s=1.0)

    async def run() -> None:
        playing = asyncio.create_task(bench.play())
        with tempfile.TemporaryDirectory() as folder:
            app = LatheApp(
                bench, mode=flags.mode, theme=flags.theme, glyphs=flags.glyphs, read_only=flags.read_only,
                state_dir=Path(folder), now=lambda: bench.now,
            )  # fmt: skip
            await app.run_async()
        playing.cancel()

    asyncio.run(run())


if __name__ == "__main__":
    main()
