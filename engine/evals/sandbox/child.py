"""The process that runs one program of a model's: `python -m lathe.engine.evals.sandbox.child FOLDER LIMITS MARK_FD`.

Standard input brings a mark and the program; output goes to a file of limited size. Invariant: the foreign program
begins after every wall is up, and the mark is written to MARK_FD only when the program ran to its end: exiting early,
with whatever status, is not passing. (A program that searched the interpreter's frames could forge the mark: the walls
protect the machine, the mark guards against accidents.)
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from lathe.engine.evals.sandbox.confine import CannotConfine, confine

CONFINEMENT_FAILED = 97
MARK_BYTES = 16


def main() -> None:
    """Read, confine, run, mark."""
    folder = Path(sys.argv[1])
    cpu_s, memory_bytes, file_bytes = (int(number) for number in sys.argv[2].split(","))
    answer = int(sys.argv[3])
    mark, source = sys.stdin.buffer.read(MARK_BYTES), sys.stdin.buffer.read()
    os.close(0)
    os.chdir(folder)
    sys.dont_write_bytecode = True
    try:
        confine(folder, cpu_s=cpu_s, memory_bytes=memory_bytes, file_bytes=file_bytes)
    except CannotConfine as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(CONFINEMENT_FAILED)
    sys.argv = ["program"]
    end, write = os._exit, os.write  # as they are now: the program may change them
    try:
        exec(compile(source, "program", "exec"), {"__name__": "__main__"})  # noqa: S102 - this is what the walls are for
        sys.stdout.flush()
        write(answer, mark)
    except SystemExit as error:
        sys.stderr.write(f"SystemExit: {error}\n")
        end(1)
    except BaseException:  # noqa: BLE001 - told, and counted as failed
        traceback.print_exc(limit=-3)
        end(1)
    end(0)


if __name__ == "__main__":
    main()
