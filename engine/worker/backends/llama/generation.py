"""One generation request at work: its choices, their text, and the deltas they give.

Knows tokens and text, not batches. Invariants: each choice gives exactly one delta with `finish`; usage and timing ride
on the last of all; after that nothing comes.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

from lathe.engine.generation import Delta, FinishReason, GenerationRequest, Timing, TokenLogprob, Usage
from lathe.engine.scheduler.sequence import Sequence
from lathe.engine.worker.backends.llama.probabilities import Rows, described, undescribed
from lathe.engine.worker.messages import RequestState
from lathe.engine.worker.sampling import Sampler
from lathe.engine.worker.stops import TextStream
from lathe.engine.worker.vocabulary import Vocabulary


class Choice:
    """One of the `n` answers."""

    __slots__ = ("accepted", "drafted", "generation", "index", "over", "sampler", "sequence", "stream")

    def __init__(self, generation: Generation, index: int, sequence: Sequence, sampler: Sampler) -> None:
        self.generation = generation
        self.index = index
        self.sequence = sequence
        self.sampler = sampler
        self.stream = TextStream(generation.request.stop)
        self.over = False
        self.drafted = 0
        """Tokens that were guessed ahead."""
        self.accepted = 0
        """Of those, the ones that the sampler drew as well."""


class Generation:
    """A request with its choices."""

    def __init__(
        self,
        request_id: int,
        request: GenerationRequest,
        lexicon: Vocabulary,
        *,
        truncated: int,
        seed: int,
        queued_at: float,
    ) -> None:
        self.id = request_id
        self.request = request
        self._lexicon = lexicon
        self._truncated = truncated
        self._seed = seed
        self.queued_at = queued_at
        self.choices: list[Choice] = []
        self._open = 0
        self._first_token_at: float | None = None
        self._prompt_logprobs: list[TokenLogprob] = []
        self._echoed = 0
        """Choices whose prompt was given back."""
        self.deltas: list[Delta] = []
        """Made and not sent yet."""
        self._sent = False

    def add(self, sequence: Sequence, sampler: Sampler) -> Choice:
        """Add a choice."""
        choice = Choice(self, len(self.choices), sequence, sampler)
        self.choices.append(choice)
        self._open += 1
        return choice

    @property
    def urgent(self) -> bool:
        """Whether its deltas must not wait for company: nothing was sent so far, or nothing more will come."""
        return self.over or not self._sent

    def take(self) -> tuple[Delta, ...]:
        """Hand over the deltas to send."""
        taken, self.deltas = tuple(self.deltas), []
        self._sent = self._sent or bool(taken)
        return taken

    @property
    def over(self) -> bool:
        """Whether every choice has finished."""
        return not self._open

    def scored(self, choice: Choice, start: int, rows: Rows) -> None:
        """Take logits of prompt tokens `start`, `start + 1`, ...: each tells about the token after it."""
        prompt = choice.sequence.tokens
        count = self.request.logprobs or 0
        if not self._prompt_logprobs:
            self._prompt_logprobs.append(undescribed(self._lexicon, prompt[0]))
        for offset, row in enumerate(rows):
            following = start + offset + 1
            if following < choice.sequence.prompt_tokens and following == len(self._prompt_logprobs):
                self._prompt_logprobs.append(described(self._lexicon, row, prompt[following], count))

    def prompted(self, choice: Choice) -> None:
        """The prompt of a choice is computed: give it back where that was asked."""
        if self.request.echo and choice.sequence.generated == 0:
            prompt = tuple(choice.sequence.tokens[: choice.sequence.prompt_tokens])
            first = self._echoed == 0
            self._echoed += 1
            self.deltas.append(
                Delta(
                    index=choice.index,
                    text=self._lexicon.decode(prompt),
                    prompt_logprobs=tuple(self._prompt_logprobs) if first else (),
                )
            )

    def ends_with(self, token: int) -> bool:
        """Whether a token ends a choice without being part of it.

        With `ignore_eos` end tokens are forbidden, so one can only come where a grammar leaves nothing else.
        """
        return token in self._lexicon.ends

    def token(self, choice: Choice, token: int, row: Rows, now: float) -> FinishReason | None:
        """Take a token that was generated and, unless it ends the choice, appended; say whether the choice is over."""
        if self._first_token_at is None:
            self._first_token_at = now
        request, sequence = self.request, choice.sequence
        if self.ends_with(token):
            return "stop"
        text = choice.stream.feed(self._lexicon.piece(token))
        logprobs: tuple[TokenLogprob, ...] = ()
        if request.logprobs is not None:
            logprobs = (described(self._lexicon, row, token, request.logprobs),)
        self.deltas.append(Delta(index=choice.index, text=text, tokens=(token,), logprobs=logprobs))
        if choice.stream.stopped_by is not None:
            return "stop"
        return "length" if sequence.generated >= sequence.answer_tokens else None

    def finish(self, choice: Choice, reason: FinishReason, now: float) -> None:
        """Close a choice with its last delta."""
        self._open -= 1
        rest = choice.stream.finish()
        last = self.over
        self.deltas.append(
            Delta(
                index=choice.index,
                text=rest,
                finish=reason,
                stop_text=choice.stream.stopped_by,
                usage=self._usage() if last else None,
                timing=self._timing(now) if last else None,
            )
        )
        choice.over = True
        choice.sampler.close()

    def unfinished(self) -> list[Choice]:
        """Choices that still run or wait; in order."""
        return [choice for choice in self.choices if not choice.over]

    def close(self) -> None:
        """Free the samplers of a request that failed."""
        for choice in self.choices:
            choice.sampler.close()

    def state(self, now: float) -> RequestState:
        """The row of a panel."""
        sequences: Items[Sequence] = [choice.sequence for choice in self.choices]
        started = any(sequence.scheduled_at is not None for sequence in sequences)
        first = self._first_token_at
        return RequestState(
            id=self.id,
            stage="decode" if first is not None else "prefill" if started else "waiting",
            client=self.request.client,
            principal=self.request.principal,
            prompt_tokens=sequences[0].prompt_tokens,
            prefilled=max(min(one.computed, one.prompt_tokens) for one in sequences),
            generated=sum(one.generated for one in sequences),
            age_s=now - self.queued_at,
            first_token_s=None if first is None else first - self.queued_at,
        )

    def _usage(self) -> Usage:
        sequences = [choice.sequence for choice in self.choices]
        return Usage(
            prompt_tokens=sequences[0].prompt_tokens,
            completion_tokens=sum(one.generated for one in sequences),
            cached_tokens=sequences[0].borrowed or 0,
            truncated_tokens=self._truncated,
            draft_tokens=sum(one.drafted for one in self.choices),
            accepted_tokens=sum(one.accepted for one in self.choices),
        )

    def _timing(self, now: float) -> Timing:
        started = min((one.sequence.scheduled_at or now for one in self.choices), default=now)
        first = self._first_token_at
        return Timing(
            scheduled_s=started - self.queued_at,
            first_token_s=None if first is None else first - self.queued_at,
            finished_s=now - self.queued_at,
            prefill_s=(now if first is None else first) - started,
            decode_s=0.0 if first is None else now - first,
            seed=self._seed,
        )
