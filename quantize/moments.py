"""Second moments on disk, one file per input, read when a weight is rounded.

Preparing an input for rounding takes a third as long as rounding with it, and a search comes back to the same inputs,
so those used last stay prepared. Invariant: they take at most `MEMORY` bytes, or are one; a file is complete once it
has its name.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from lathe.quantize.artefact import new_artefact
from lathe.quantize.feedback import Feedback

_INDEX = "moments.json"
MEMORY = 512 * 1024**2
"""Bytes of inputs that stay prepared."""


class MomentFolder:
    """The moments of one model on one text."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._files: dict[str, str] = {}
        self._prepared: OrderedDict[str, Feedback | None] = OrderedDict()
        if (folder / _INDEX).exists():
            self._files = json.loads((folder / _INDEX).read_bytes())

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def save(self, names: tuple[str, ...], moments: npt.NDArray[np.float32]) -> None:
        """Keep the moments of an input that several weights read."""
        file = f"{len(set(self._files.values())):05d}.npy"
        with new_artefact(self._folder / file, force=True) as part, part.open("wb") as opened:
            np.save(opened, moments)
        self._files |= dict.fromkeys(names, file)
        with new_artefact(self._folder / _INDEX, force=True) as part:
            part.write_text(json.dumps(self._files))

    def feedback(self, name: str) -> Feedback | None:
        """What rounding a weight needs; None where its input was not seen."""
        file = self._files.get(name)
        if file is None:
            return None
        if file not in self._prepared:
            self._prepared[file] = Feedback.prepare(np.load(self._folder / file, allow_pickle=False))
            while len(self._prepared) > 1 and sum(map(_size, self._prepared.values())) > MEMORY:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(file)
        return self._prepared[file]


def _size(prepared: Feedback | None) -> int:
    return 0 if prepared is None else prepared.moments.nbytes + prepared.factor.nbytes
