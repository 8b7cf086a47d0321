"""The form of sampling settings."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from lathe.engine.errors import UsageError
from lathe.engine.generation import MAX_STOPS, Sampling
from lathe.tui.chat import Options, change
from lathe.tui.screens.forms import Field, Form

NAMES = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "frequency_penalty",
    "presence_penalty", "seed", "max_tokens", "stop",
)  # fmt: skip
_HINTS = {
    "temperature": "0: always the likeliest",
    "seed": "empty: random, the same for both sides",
    "max_tokens": "empty: up to the context",
    "stop": f"texts that end the answer, separated by commas, at most {MAX_STOPS}",
}
_OPTIONAL = ("seed", "max_tokens", "stop")
"""Fields whose emptiness means something; the others fall back to the default."""


def sampling_form(options: Options) -> tuple[Form, Callable[[dict[str, str]], Options]]:
    """The form, and how its values become options."""
    values = {name: getattr(options.sampling, name, None) for name in NAMES}
    values |= {"max_tokens": options.max_tokens, "stop": ",".join(options.stop)}
    fields = tuple(
        Field(name, name.replace("_", " "), "" if value is None else str(value), hint=_HINTS.get(name, ""))
        for name, value in values.items()
    )

    def decode(form: dict[str, str]) -> Options:
        default = Sampling()
        words = (f"{n}={v or ('' if n in _OPTIONAL else getattr(default, n))}" for n, v in form.items())
        # Settings without a field (grammar, mirostat, ...) stay as they are.
        return change(Options(sampling=options.sampling), shlex.join(words))

    def problem(form: dict[str, str]) -> str:
        try:
            decode(form)
        except UsageError as error:
            return error.message
        return ""

    return Form("Sampling", fields, yes="Use", check=problem), decode
