"""Guesses at the tokens that come next, so that one batch can confirm several of them.

    lookup        what followed the last time the same few tokens stood in this very text; costs next to nothing
    draft model   what a smaller model of the same vocabulary would say

A guess is checked by the model itself: each position's logits go through the request's own sampler, and the first token
that differs ends it. So the text is the one that the sampler would have drawn anyway. Invariant: guesses only join
batches that hold nothing but decoding streams, and never take cells that the cache would have to make room for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec
from lathe.engine.errors import InternalError, UsageError
from lathe.engine.native.batch import Batch
from lathe.engine.native.llama import ContextOptions, LlamaContext, LlamaModel
from lathe.engine.scheduler.ledger import Ledger
from lathe.engine.scheduler.radix import common_prefix
from lathe.engine.scheduler.sequence import Chunk, Plan, Sequence
from lathe.engine.worker.backends.llama.lexicon import Lexicon
from lathe.engine.worker.messages import LOOKUP

_LONGEST, _FIRST = 16, 4
"""Tokens of a guess: at most, and to begin with."""
_MOST_ROWS = 32
"""Rows of a batch with guesses: beyond, a batch costs more than the tokens it saves."""
_LONGEST_PAUSE = 64
_RUNS = (3, 2)
"""Lengths of the runs of tokens that lookup compares, longest first."""
_ALIKE = 128
"""Tokens by which two sizes of the same vocabulary may differ: padding of the matrix."""


class Guesser(Protocol):
    """Where guesses come from."""

    def guess(self, wanted: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        """Guess up to so many next tokens of each sequence; those without a guess are left out."""

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended."""


class _Record:
    """How guesses about one sequence have fared."""

    __slots__ = ("length", "misses", "pause")

    def __init__(self) -> None:
        self.length = _FIRST
        self.misses = 0
        self.pause = 0
        """Iterations without a guess, after guesses of which nothing was right."""

    def note(self, guessed: int, right: int) -> None:
        if right == guessed:
            self.length = min(_LONGEST, 2 * self.length)
        elif 2 * right < guessed:
            self.length = max(1, self.length // 2)
        self.misses = 0 if right else self.misses + 1
        if self.misses > 1:
            self.pause = min(_LONGEST_PAUSE, 2**self.misses)


class Speculator:
    """Adds guesses to plans, as long and as often as they turn out right."""

    def __init__(self, guesser: Guesser, ledger: Ledger, *, most_rows: int) -> None:
        """Guess.

        Args:
            most_rows: tokens and rows of logits that a batch may have.
        """
        self._guesser = guesser
        self._ledger = ledger
        self._rows = min(_MOST_ROWS, most_rows)
        self._records: dict[Sequence, _Record] = {}

    def extended(self, plan: Plan) -> Plan:
        """The plan with guesses behind its streams; the same plan where there is nothing to gain."""
        if not plan.streams or plan.short or plan.long or 2 * plan.streams > self._rows:
            return plan
        room = min(self._rows, self._ledger.capacity - self._ledger.used) - plan.streams
        wanted: dict[Sequence, int] = {}
        for chunk in plan.chunks:
            sequence = chunk.sequence
            record = self._records.setdefault(sequence, _Record())
            if record.pause:
                record.pause -= 1
                continue
            count = min(record.length, sequence.answer_tokens - sequence.generated - 1, room // plan.streams)
            if count > 0:
                wanted[sequence] = count
        guesses = self._guesser.guess(wanted) if wanted else {}
        if not guesses:
            return plan
        plain = [chunk for chunk in plan.chunks if chunk.sequence not in guesses]
        drafted = []
        for chunk in plan.chunks:
            if (guess := guesses.get(chunk.sequence)) is not None:
                chunk.sequence.draft = guess
                drafted.append(Chunk(chunk.sequence, chunk.start, 1 + len(guess), 1 + len(guess)))
        rows = sum(chunk.count for chunk in drafted)
        return msgspec.structs.replace(plan, chunks=plain + drafted, streams=len(plain), drafted=rows)

    def note(self, sequence: Sequence, guessed: int, right: int) -> None:
        """Learn how a guess fared."""
        self._records[sequence].note(guessed, right)

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        self._records.pop(sequence, None)
        self._guesser.forget(sequence)


class Lookup:
    """Guesses from the text itself."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._known: dict[Sequence, tuple[dict[int, int], int]] = {}
        """Run of tokens, as one number -> where its last occurrence ends; and how far the text was read."""

    def guess(self, wanted: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        """What followed the last occurrence of the newest tokens; a text that repeats itself goes on so."""
        found = {}
        for sequence, count in wanted.items():
            tokens = sequence.tokens
            ends = self._read(sequence)
            for run in _RUNS:
                end = ends.get(self._key(tokens, len(tokens), run)) if len(tokens) > run else None
                if end is not None:
                    period = len(tokens) - end
                    found[sequence] = [tokens[end + place % period] for place in range(count)]
                    break
        return found

    def _read(self, sequence: Sequence) -> dict[int, int]:
        """The runs of a text, all but those that end with it."""
        ends, read = self._known.get(sequence, ({}, min(_RUNS)))
        tokens = sequence.tokens
        for end in range(read, len(tokens)):
            for run in _RUNS:
                if end >= run:
                    ends[self._key(tokens, end, run)] = end
        self._known[sequence] = ends, max(read, len(tokens))
        return ends

    def _key(self, tokens: list[int], end: int, run: int) -> int:
        key = run
        for token in tokens[end - run : end]:
            key = key * self._vocabulary + token
        return key

    def forget(self, sequence: Sequence) -> None:
        """Drop the runs of a text."""
        self._known.pop(sequence, None)


class DraftModel:
    """Guesses of a smaller model, most probable token by most probable token."""

    def __init__(self, path: Path, lexicon: Lexicon, *, slots: int, cells: int, threads: int, gpu_layers: int) -> None:
        """Load the model.

        Raises:
            UsageError: its vocabulary is another one.
            DataError: it cannot be loaded.
        """
        self._model = LlamaModel(path, gpu_layers=gpu_layers)
        _check_vocabulary(self._model, lexicon, path)
        self._size = min(self._model.n_vocab, lexicon.size)
        batch = 512
        self._context = LlamaContext(
            self._model,
            ContextOptions(n_ctx=cells, n_batch=batch, n_ubatch=batch, n_seq_max=slots, n_outputs_max=slots,
                           n_threads=threads, kv_unified=True),
        )  # fmt: skip
        self._batch = Batch(batch)
        self._free = list(range(slots))
        self._places: dict[Sequence, tuple[int, list[int]]] = {}
        """Native sequence, and the tokens that it covers."""

    @property
    def bytes(self) -> int:
        """Of its weights."""
        return self._model.size

    def guess(self, wanted: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        """Decode greedily; sequences for which it has no room are left out."""
        guesses: dict[Sequence, list[int]] = {}
        for sequence in wanted:
            first = self._caught_up(sequence)
            if first is not None:
                guesses[sequence] = [first]
        # Where the cache filled up on the way, the places are gone and guesses stay as long as they are.
        while longer := [one for one in guesses if one in self._places and len(guesses[one]) < wanted[one]]:
            self._batch.clear()
            for sequence in longer:
                native, known = self._places[sequence]
                self._batch.add(guesses[sequence][-1], len(known), native, True)
            if self._context.try_decode(self._batch):
                self._start_over()
                return {}
            rows = self._context.logits(len(longer))
            for sequence, row in zip(longer, rows, strict=True):
                self._places[sequence][1].append(guesses[sequence][-1])
                guesses[sequence].append(int(row[: self._size].argmax()))
        return guesses

    def _caught_up(self, sequence: Sequence) -> int | None:
        """Compute what is new of a text; the token that follows. None where there is no room."""
        if sequence not in self._places:
            if not self._free:
                return None
            self._places[sequence] = self._free.pop(), []
        native, known = self._places[sequence]
        tokens = sequence.tokens
        same = min(common_prefix(known, tokens), len(tokens) - 1)
        if same < len(known):
            if not self._context.remove(native, same, -1):
                raise InternalError("the draft model's cache cannot be cut")
            del known[same:]
        while len(known) < len(tokens):
            part = tokens[len(known) : len(known) + self._batch.capacity]
            self._batch.clear()
            last = len(known) + len(part) == len(tokens)
            self._batch.extend(part, len(known), native)
            self._batch.output[len(part) - 1] = last
            if self._context.try_decode(self._batch):
                self._start_over()
                return None
            known.extend(part)
        return int(self._context.logits(1)[0][: self._size].argmax())

    def _start_over(self) -> None:
        """Its cache is full: all is forgotten, and computed again where it is asked for."""
        self._context.clear(data=False)
        self._free += [native for native, _ in self._places.values()]
        self._places.clear()

    def forget(self, sequence: Sequence) -> None:
        """Free the cells of a text."""
        place = self._places.pop(sequence, None)
        if place is not None:
            self._context.remove(place[0])
            self._free.append(place[0])


def guesser_for(
    draft: str | None, lexicon: Lexicon, *, recurrent: bool, make: Callable[[Path], DraftModel]
) -> Guesser | None:
    """The source of guesses that the options name; None without any.

    Raises:
        UsageError: the model's memory is a state that cannot go back over a wrong guess.
    """
    if draft is None:
        return None
    if recurrent:
        message = "this model's memory is a state that cannot go back, so nothing can be guessed ahead"
        raise UsageError(message, hint="load it without a draft", code="E_CAPABILITY")
    return Lookup(lexicon.size) if draft == LOOKUP else make(Path(draft))


def _check_vocabulary(model: LlamaModel, lexicon: Lexicon, path: Path) -> None:
    shared = min(model.n_vocab, lexicon.size)
    differing = next((token for token in range(shared) if model.piece(token) != lexicon.model.piece(token)), None)
    if abs(model.n_vocab - lexicon.size) > _ALIKE or differing is not None:
        where = f"token {differing} differs" if differing is not None else f"{model.n_vocab} and {lexicon.size} tokens"
        raise UsageError(
            f"{path.name} cannot draft for this model: their vocabularies are not the same ({where})",
            hint="a draft model must be a smaller one of the same family; `lookup` needs none", code="E_DRAFT",
        )  # fmt: skip
