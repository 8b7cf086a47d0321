"""A KV cache as a table of cells, obviously right: what the ledger's effects must add up to."""

from __future__ import annotations

from itertools import accumulate

from lathe.engine.scheduler.ledger import Discard, Drop, Effect, Restore, Save, Share


class NaiveCache:
    """Cells of (position, hash of the text up to there, sequences), as llama.cpp's unified cache keeps them."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.cells: list[tuple[int, int, set[int]]] = []
        self.saved: dict[int, list[tuple[int, int]]] = {}

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Share(source, target, start, end):
                    covered = [cell for cell in self.cells if source in cell[2] and start <= cell[0] < end]
                    assert sorted(cell[0] for cell in covered) == list(range(start, end)), effect
                    for _, _, sequences in covered:
                        assert target not in sequences
                        sequences.add(target)
                case Save(sequence, entry):
                    self.saved[entry] = sorted((cell[0], cell[1]) for cell in self.cells if sequence in cell[2])
                    assert [position for position, _ in self.saved[entry]] == list(range(len(self.saved[entry])))
                case Restore(entry, sequence):
                    for _, _, sequences in self.cells:
                        sequences.discard(sequence)
                    self.cells = [cell for cell in self.cells if cell[2]]
                    self.cells += [(position, text, {sequence}) for position, text in self.saved[entry]]
                    assert len(self.cells) <= self.capacity, "no room for what comes back"
                case Discard(entry):
                    del self.saved[entry]
                case Drop(sequence, start, end):
                    for position, _, sequences in self.cells:
                        if position >= start and (end is None or position < end):
                            sequences.discard(sequence)
        if effects:
            self.cells = [cell for cell in self.cells if cell[2]]

    def compute(self, sequence: int, tokens: list[int], start: int, count: int) -> None:
        """Add cells after what the sequence covers, which must be exactly `tokens[:start]`."""
        assert self.sees(sequence, tokens, start), "tokens were computed over the wrong past"
        text = _hashes(tokens[: start + count])
        self.cells.extend((position, text[position], {sequence}) for position in range(start, start + count))
        assert len(self.cells) <= self.capacity, "more cells than there are"

    def sees(self, sequence: int, tokens: list[int], count: int) -> bool:
        """Whether a sequence covers exactly the first `count` of these tokens."""
        mine = sorted((position, text) for position, text, sequences in self.cells if sequence in sequences)
        return mine == list(enumerate(_hashes(tokens[:count])))


def _hashes(tokens: list[int]) -> list[int]:
    """A hash for each prefix."""
    return list(accumulate(tokens, lambda text, token: hash((text, token)), initial=0))[1:]
