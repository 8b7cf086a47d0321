"""The values of an eval: a suite's tasks, the items asked, what came back.

Pure. Invariant: an `Item` holds everything that determines the answer besides the model, so its hash is the identity
under which answers are cached and cases of two runs are paired.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import msgspec
from lathe.engine.generation import Message, Sampling, Score
from lathe.engine.rag.requests import Mode, SentenceSupport
from msgspec import Meta

Positive = Annotated[int, Meta(ge=1, le=10_000_000)]
Repeats = Annotated[int, Meta(ge=1, le=1000)]
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
TaskKind = Literal["choice", "perplexity", "generate", "similarity", "rag", "retrieval"]
Overflow = Literal["refuse", "truncate_left", "truncate_middle"]
DataFormat = Literal["jsonl", "json", "csv", "squad", "arc", "gsm8k", "truthfulqa", "text"]
Fields = dict[str, Any]
"""The variables of one case, as its source has them."""


class _Declared(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class Membership(_Declared, frozen=True, kw_only=True):
    """Keep the rows whose field is (or is not) in a JSON list."""

    field: str
    file: str
    negate: bool = False


class Distractors(_Declared, frozen=True, kw_only=True):
    """Make `choices` and `answer`: the case's own text among those of other cases."""

    field: str
    count: Positive = 3


class Source(_Declared, frozen=True, kw_only=True):
    """Cases that stand in a file."""

    file: str
    """Path beside the suite, absolute, or `embedded:NAME` for the embedded model's own data; `${variable}`s allowed."""
    format: DataFormat | None = None
    """None: by the file's suffix."""
    fields: dict[str, str] = {}
    """Variable -> the source's own name for it."""
    only: Membership | None = None
    distractors: Distractors | None = None
    characters: Positive = 2000
    """Of `text`: paragraphs are joined until a case has this many."""


class FewShot(_Declared, frozen=True, kw_only=True):
    """Solved examples before the question."""

    count: Positive
    separator: str = "\n\n"
    examples: tuple[Fields, ...] = ()
    """None given: drawn, by the seed, from the task's other cases."""


class MetricSpec(msgspec.Struct, frozen=True):
    """A metric with its options: `numeric` or `{numeric: {tolerance: 0.01}}`."""

    name: str
    options: dict[str, Any] = {}


class Task(_Declared, frozen=True, kw_only=True):
    """Cases that are asked and judged alike."""

    id: Name
    kind: TaskKind
    cases: Source | tuple[Fields, ...]
    prompt: str = "{{ prompt }}"
    """Jinja template of the question; of kind perplexity, of the text."""
    system: str = ""
    chat: bool = False
    """Through the model's chat template, prompt as the user's turn."""
    choices: str = "choices"
    """Jinja expression: the list of continuations."""
    separator: str = " "
    """Between prompt and choice, or prompt and a few-shot answer; unused with chat."""
    answer: str | int = "answer"
    """Jinja expression: index, letter or text of the right choice; or the target text, or a list of them."""
    fewshot: FewShot | None = None
    metrics: tuple[str | dict[str, dict[str, Any]], ...] = ()
    """None given: the kind's own."""
    primary: str | None = None
    """The metric that gates and comparisons look at first; None: the first."""
    max_tokens: Positive = 256
    overflow: Overflow = "refuse"
    """Of kind generate: what becomes of a prompt that is too long for the model."""
    stop: tuple[str, ...] = ()
    sampling: Sampling = Sampling(temperature=0.0)
    store: str = "${store}"
    """Of kinds rag and retrieval: the RAG store that is asked; `${variable}`s allowed."""
    k: Positive = 6
    """Passages that are wanted of it."""
    mode: Mode = "hybrid"
    transforms: tuple[str, ...] = ()
    """Robustness: the same case in other clothes; every one is asked besides the original."""
    repeats: Repeats = 1
    """With seeds `seed`, `seed + 1`, ...; for sampled answers."""
    limit: Positive | None = None
    shuffle: bool = False
    seed: Seed | None = None
    tags: tuple[str, ...] = ()


class Suite(_Declared, frozen=True, kw_only=True):
    """A suite as its file declares it."""

    schema: Literal[1] = 1
    name: Name
    version: str = "1"
    description: str = ""
    licence: str = ""
    tags: tuple[str, ...] = ()
    seed: Seed = 0
    variables: dict[str, str | int | float | bool] = {}
    """Defaults; a run may set others."""
    tasks: tuple[Task, ...]
    gates: tuple[str, ...] = ()
    """What a run of this suite must satisfy, where its caller says nothing else."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a task's data."""

    id: str
    fields: Fields
    tags: tuple[str, ...] = ()
    place: str
    """`file:line`, for messages."""


class Item(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One question, ready to be asked."""

    task: str
    case: str
    kind: TaskKind
    variant: str = ""
    """The transform it went through; empty: the original."""
    repeat: int = 0
    context: str = ""
    """Prompt or text."""
    messages: tuple[Message, ...] = ()
    """In place of `context`, with chat."""
    continuations: tuple[str, ...] = ()
    gold: tuple[int, ...] = ()
    """Indices of right continuations."""
    targets: tuple[str, ...] = ()
    """Texts that count as right."""
    tags: tuple[str, ...] = ()
    max_tokens: int = 256
    overflow: Overflow = "refuse"
    stop: tuple[str, ...] = ()
    sampling: Sampling = Sampling(temperature=0.0)
    store: str = ""
    k: int = 6
    mode: Mode = "hybrid"
    fields: Fields = {}

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What names the item within its suite."""
        return self.task, self.case, self.variant, self.repeat

    @property
    def label(self) -> str:
        """The key for people."""
        variant = f"~{self.variant}" if self.variant else ""
        return f"{self.task}/{self.case}{variant}" + (f"#{self.repeat}" if self.repeat else "")

    def sha256(self) -> str:
        """Identity of the question: prompt, continuations and parameters, not its name, targets or tags."""
        asked: tuple[object, ...] = (
            self.kind, self.context, self.messages, self.continuations, self.max_tokens, self.stop, self.sampling,
            self.overflow, self.store, self.k, self.mode,
        )  # fmt: skip
        return hashlib.sha256(msgspec.json.encode(asked, order="deterministic")).hexdigest()

    def prompt_text(self) -> str:
        """The question for people."""
        if not self.messages:
            return self.context
        return "\n".join(f"[{message.role}] {message.content}" for message in self.messages)


class Passage(msgspec.Struct, frozen=True):
    """What a store found, as it was given to the model."""

    path: str
    start: int
    text: str


class Response(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model made of an item."""

    text: str = ""
    finish: str = ""
    scores: tuple[Score, ...] = ()
    """Of kind choice one per continuation, of perplexity one per window."""
    vector: tuple[float, ...] = ()
    passages: tuple[Passage, ...] = ()
    """Of kinds rag and retrieval, best first."""
    support: tuple[SentenceSupport, ...] = ()
    """Of kind rag: what each sentence of the answer rests on."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_s: float | None = None
    total_s: float | None = None
    tokens_per_s: float | None = None
    stop_text: str | None = None
    cached: bool = False


def sha256_of(value: object) -> str:
    """Hash of any plain value."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()
