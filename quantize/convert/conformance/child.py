"""The child that runs both tokenizers: `python -m lathe.quantize.convert.conformance.child`.

A `Request` comes in on stdin, an `Answer` goes out on stdout. llama.cpp aborts the process on some texts, so each
candidate works in a fork that can die; invariant: this process survives and says which text killed it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
from lathe.quantize.libllama import bindings, complaint, forget

CPU_SECONDS = 300
MAX_CRASHES = 200
_KINDS = {bool: 2, str: 3}
"""`enum llama_model_kv_override_type` of the values a candidate may set."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to compare."""

    gguf: str
    """A GGUF with a vocabulary; tensors are not looked at."""
    tokenizer: str
    """tokenizer.json."""
    probes: list[str]
    marked: list[str]
    """Texts with control tokens in them, which both sides are to recognise."""
    candidates: list[dict[str, str | bool]]
    """Metadata that replaces the file's, one set per candidate; tried until one agrees on the decisive probes."""
    decisive: int
    """How many of the probes, from the first, must agree."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What one candidate made of the texts; None stands for a crash."""

    error: str | None = None
    """llama.cpp refused to load the vocabulary."""
    probes: list[list[int] | None] = []
    marked: list[list[int] | None] = []
    surrounded: list[int] | None = None
    """The first probe with the tokens that are added around a text."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What both sides made of the texts."""

    error: str | None = None
    """The original tokenizer could not be loaded."""
    original: Trial = Trial()
    unknown: int | None = None
    """The original's token for what it has no token for."""
    trials: list[Trial] = []


def main() -> None:
    """Answer one request."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    sys.stdout.buffer.write(msgspec.json.encode(answer(request)))


def answer(request: Request) -> Answer:
    """Run the original, then candidates until one does the same."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(request.tokenizer)
    except Exception as error:  # noqa: BLE001 - the Rust library raises bare exceptions; the text is reported
        return Answer(error=str(error)[:500])
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def plain(texts: list[str]) -> list[list[int] | None]:
        return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]

    surrounded = tokenizer.encode(request.probes[0], add_special_tokens=True).ids
    original = Trial(probes=plain(request.probes), marked=plain(request.marked), surrounded=surrounded)
    trials: list[Trial] = []
    for candidate in request.candidates:
        trials.append(_try(request, candidate))
        if _agree(trials[-1], original, request.decisive):
            break
    unknown = getattr(tokenizer.model, "unk_token", None)
    return Answer(
        original=original, unknown=tokenizer.token_to_id(unknown) if isinstance(unknown, str) else None, trials=trials
    )


def _agree(trial: Trial, original: Trial, decisive: int) -> bool:
    """Tell whether a trial needs no further one; texts that crash llama.cpp would crash it with any candidate."""
    pairs = list(zip(trial.probes, original.probes, strict=False))[:decisive]
    return trial.error is None and all(found is None or found == expected for found, expected in pairs)


def _try(request: Request, candidate: dict[str, str | bool]) -> Trial:
    """Load the vocabulary as one candidate sees it and tokenize everything."""
    native = bindings()
    forget()
    overrides = (native.llama_model_kv_override * (len(candidate) + 1))()
    for slot, (key, value) in zip(overrides, candidate.items(), strict=False):
        slot.tag, slot.key = _KINDS[type(value)], key.encode()
        if isinstance(value, bool):
            slot.value.val_bool = value
        else:
            slot.value.val_str = value.encode()
    parameters = native.llama_model_default_params()
    parameters.vocab_only = True
    parameters.kv_overrides = ctypes.cast(overrides, ctypes.POINTER(native.llama_model_kv_override))
    model = native.llama_model_load_from_file(os.fsencode(request.gguf), parameters)
    if not model:
        return Trial(error=complaint())
    try:
        vocabulary = native.llama_model_get_vocab(model)
        work = [(text, False, False) for text in request.probes]
        work += [(text, False, True) for text in request.marked]
        work.append((request.probes[0], True, False))
        found = _in_forks(native, vocabulary, work)
    finally:
        native.llama_model_free(model)
    count = len(request.probes)
    return Trial(probes=found[:count], marked=found[count:-1], surrounded=found[-1])


def _in_forks(native: Any, vocabulary: Any, work: Sequence[tuple[str, bool, bool]]) -> list[list[int] | None]:
    """Tokenize in a fork; start another behind the text that killed it."""
    found: list[list[int] | None] = []
    crashes = 0
    while len(found) < len(work):
        reading, writing = os.pipe()
        worker = os.fork()
        if worker == 0:
            signal.alarm(CPU_SECONDS)
            os.close(reading)
            with os.fdopen(writing, "wb") as pipe:
                for text, add_special, parse_special in work[len(found) :]:
                    ids = tokenize(native, vocabulary, text, add_special=add_special, parse_special=parse_special)
                    pipe.write(msgspec.json.encode(ids) + b"\n")
                    pipe.flush()
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            found += [msgspec.json.decode(line, type=list[int]) for line in pipe if line.endswith(b"\n")]
        os.waitpid(worker, 0)
        if len(found) < len(work):
            found.append(None)
            crashes += 1
        if crashes > MAX_CRASHES:
            found += [None] * (len(work) - len(found))
    return found


def tokenize(native: Any, vocabulary: Any, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
    """Tokenize with llama.cpp."""
    data = text.encode()
    room = len(data) + 8
    tokens = (native.llama_token * room)()
    count = native.llama_tokenize(vocabulary, data, len(data), tokens, room, add_special, parse_special)
    if count < 0:
        raise OverflowError(f"{-count} tokens for {len(data)} bytes")
    return list(tokens[:count])


if __name__ == "__main__":
    main()
