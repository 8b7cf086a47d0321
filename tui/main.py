"""The `lathe` command. Nothing heavy is imported before the verb is known."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        from lathe.engine.release import RELEASE

        sys.stdout.write(f"lathe {RELEASE}\n")
        return
    from lathe.tui.cli.root import cli

    cli(prog_name="lathe")


if __name__ == "__main__":
    main()
