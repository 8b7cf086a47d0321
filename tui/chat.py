"""A conversation as values: turns, what they cost, the request they make, the commands of the prompt. Pure.

Invariant: `messages` holds exactly what the model is sent; what is shown (cleaned, rendered) never goes back in.
"""

from __future__ import annotations

import shlex
from difflib import get_close_matches

import msgspec
from lathe.engine.errors import UsageError
from lathe.engine.generation import (
    FinishReason,
    GenerationRequest,
    Message,
    Sampling,
    Timing,
    Usage,
    check,
)
from lathe.tui import formats
from lathe.tui.glyphs import Glyphs


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What every turn is asked with."""

    sampling: Sampling = Sampling()
    max_tokens: int | None = 512
    stop: tuple[str, ...] = ()


class Cost(msgspec.Struct, frozen=True):
    """What one answer took."""

    finish: FinishReason = "stop"
    usage: Usage | None = None
    timing: Timing | None = None


class Turn(msgspec.Struct, frozen=True):
    """One message, with its cost if a model wrote it."""

    role: str
    content: str
    cost: Cost | None = None


class Conversation:
    """The turns with one model."""

    def __init__(self) -> None:
        self.system = ""
        self.turns: list[Turn] = []

    def messages(self) -> tuple[Message, ...]:
        """What the model is sent; empty answers are left out."""
        system = (Message("system", self.system),) if self.system else ()
        return (*system, *(Message(turn.role, turn.content) for turn in self.turns if turn.content))

    def ask(self, text: str) -> None:
        """Add the user's turn."""
        self.turns.append(Turn("user", text))

    def answer(self, text: str, cost: Cost) -> None:
        """Add the model's turn."""
        self.turns.append(Turn("assistant", text, cost))

    def take_back(self) -> str | None:
        """Remove the last question and what followed; returns the question."""
        for index in range(len(self.turns) - 1, -1, -1):
            if self.turns[index].role == "user":
                text = self.turns[index].content
                del self.turns[index:]
                return text
        return None

    @property
    def last_answer(self) -> str:
        """The newest answer."""
        return next((turn.content for turn in reversed(self.turns) if turn.role == "assistant"), "")

    @property
    def context_used(self) -> int | None:
        """Tokens of the last exchange, as the engine counted them."""
        usage = next(
            (t.cost.usage for t in reversed(self.turns) if t.cost is not None and t.cost.usage is not None), None
        )
        return usage.prompt_tokens + usage.completion_tokens if usage is not None else None

    def as_markdown(self, model: str) -> str:
        """The conversation to keep."""
        parts = [f"# {model}\n"]
        if self.system:
            parts.append(f"## system\n\n{self.system}\n")
        parts += [f"## {turn.role}\n\n{turn.content}\n" for turn in self.turns]
        return "\n".join(parts)


def request(model: str, conversation: Conversation, options: Options, client: str) -> GenerationRequest:
    """The request for the next answer."""
    return GenerationRequest(
        model=model,
        messages=conversation.messages(),
        max_tokens=options.max_tokens,
        sampling=options.sampling,
        stop=options.stop,
        client=client,
    )


def cost_text(cost: Cost, glyphs: Glyphs) -> str:
    """`stop · 96 tokens · first 190 ms · 41.0 tok/s · prompt 812 (640 cached) · seed 7`."""
    parts: list[str] = [_FINISH.get(cost.finish, cost.finish)]
    usage, timing = cost.usage, cost.timing
    if usage is not None:
        parts.append(formats.many(usage.completion_tokens, "token"))
    if timing is not None:
        if timing.first_token_s is not None:
            parts.append(f"first {formats.latency(timing.first_token_s)}")
        speed = timing.decode_tokens_per_s(usage.completion_tokens) if usage is not None else None
        if speed is not None:
            parts.append(f"{formats.rate(speed)} tok/s")
    if usage is not None:
        cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
        parts.append(f"prompt {usage.prompt_tokens}{cached}")
        if usage.truncated_tokens:
            parts.append(f"{usage.truncated_tokens} cut")
    if timing is not None:
        parts.append(f"seed {timing.seed}")
    return f" {glyphs.separator} ".join(parts)


_FINISH = {
    "length": "stopped at the token limit",
    "cancelled": "cancelled",
    "deadline": "out of time",
    "error": "failed",
}


# -- the prompt's commands ------------------------------------------------------------------------------------------

COMMANDS = {
    "model": "/model NAME       talk to another model",
    "with": "/with NAME        a second model beside it; /with alone closes it",
    "system": "/system TEXT      the system prompt; empty removes it",
    "set": "/set NAME=VALUE   temperature, top_p, top_k, min_p, seed, max_tokens, repeat_penalty ...",
    "clear": "/clear            a new conversation",
    "again": "/again            regenerate the last answer",
    "edit": "/edit             take the last question back and change it",
    "template": "/template         the prompt as the model sees it",
    "params": "/params           all sampling settings",
    "export": "/export           write the conversation to a file",
}


def parse_command(text: str) -> tuple[str, str] | None:
    """(command, rest) of a prompt that starts with a slash; None where it is a message.

    Raises:
        UsageError: a slash and one word that is no command.
    """
    if not text.startswith("/") or "\n" in text:
        return None
    word, _, rest = text[1:].partition(" ")
    if word in COMMANDS:
        return word, rest.strip()
    if not word.isalpha():
        return None
    near = get_close_matches(word, COMMANDS, 1)
    raise UsageError(f"no command /{word}" + (f"; did you mean /{near[0]}?" if near else ""))


def complete(text: str) -> str:
    """The longest completion of a half-typed command."""
    if not text.startswith("/") or " " in text:
        return text
    found = [name for name in COMMANDS if name.startswith(text[1:])]
    if len(found) == 1:
        return f"/{found[0]} "
    return text


def change(options: Options, text: str) -> Options:
    """Apply `name=value` words to the options.

    Raises:
        UsageError: an unknown name, or a value outside its range.
    """
    values = {name: getattr(options.sampling, name) for name in Sampling.__struct_fields__}
    max_tokens, stop = options.max_tokens, options.stop
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"/set: {error}") from None
    for word in words:
        name, sign, value = word.partition("=")
        name = _SHORT.get(name, name)
        if not sign:
            raise UsageError(f"/set {word}: write NAME=VALUE")
        if name == "max_tokens":
            max_tokens = _whole(name, value) if value else None
        elif name == "stop":
            stop = tuple(part.encode().decode("unicode_escape") for part in value.split(",")) if value else ()
        elif name in values:
            values[name] = _sampled(name, value)
        else:
            near = get_close_matches(name, [*values, "max_tokens", "stop"], 1)
            raise UsageError(f"no setting {name}" + (f"; did you mean {near[0]}?" if near else ""))
    changed = Options(sampling=Sampling(**values), max_tokens=max_tokens, stop=stop)
    check(GenerationRequest(model="-", prompt="-", sampling=changed.sampling, max_tokens=max_tokens, stop=stop))
    return changed


_SHORT = {"temp": "temperature", "max": "max_tokens", "rep": "repeat_penalty"}


def _sampled(name: str, value: str) -> object:
    default = getattr(Sampling(), name)
    if name == "seed":
        return _whole(name, value) if value not in ("", "random") else None
    if name in ("grammar", "json_schema"):
        return value or None
    if isinstance(default, bool):
        return value.lower() in ("1", "true", "yes", "on")
    if isinstance(default, int):
        return _whole(name, value)
    if not isinstance(default, float):
        raise UsageError(f"{name} cannot be set here")
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"{name}: {value!r} is no number") from None


def _whole(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise UsageError(f"{name}: {value!r} is no whole number") from None


def shown_options(options: Options) -> list[tuple[str, str, bool]]:
    """(name, value, changed) of what a panel shows: the common settings, and every one that was changed."""
    default = Sampling()
    common = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "seed")
    rows: list[tuple[str, str, bool]] = []
    for name in Sampling.__struct_fields__:
        value, usual = getattr(options.sampling, name), getattr(default, name)
        if name in common or value != usual:
            shown = "random" if name == "seed" and value is None else formats.figure(value)
            rows.append((name, shown, value != usual))
    rows.append(
        ("max_tokens", "no limit" if options.max_tokens is None else str(options.max_tokens), options.max_tokens != 512)
    )
    if options.stop:
        rows.append(("stop", " ".join(repr(text) for text in options.stop), True))
    return rows
