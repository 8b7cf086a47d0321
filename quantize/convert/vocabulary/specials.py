"""Special tokens: which id plays which role, and what is added around a text.

Three files speak about them. The template in tokenizer.json says what is added, tokenizer_config.json names the
tokens, config.json repeats some ids. Earlier voices win; invariant: a role that nobody names gets no id.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lathe.quantize.checkpoint import Checkpoint
from lathe.quantize.convert.vocabulary.model import Specials
from lathe.quantize.convert.vocabulary.source import TokenizerSource, steps

_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def read_specials(checkpoint: Checkpoint, source: TokenizerSource | None, size: int) -> Specials:
    """Gather the special tokens below `size`; `source` is None without a tokenizer.json."""
    names: dict[str, Any] = {}
    add: dict[str, bool] = {}
    if checkpoint.tokenizer:
        names = {role: _text(checkpoint.tokenizer.get(f"{role}_token")) for role in _ROLES}
    if source is not None:
        names["bos"] = names.get("bos") or names.get("cls")
        names["eos"] = names.get("eos") or names.get("sep")
        for processor in steps(source.pipeline.get("post_processor")):
            _apply(processor, names, add)
    ids: dict[str, int] = {}
    if checkpoint.tokenizer and source is not None:
        by_text = {token.content: token.id for token in source.added.values()}
        for role in (*_ROLES, "eot", "eom"):
            flag = checkpoint.tokenizer.get(f"add_{role}_token")
            if isinstance(flag, bool):
                add.setdefault(role, flag)
            if (number := by_text.get(names.get(role) or "")) is not None:
                ids.setdefault(role, number)
    elif checkpoint.tokenizer:
        add = {role: flag for role in _ROLES if isinstance(flag := checkpoint.tokenizer.get(f"add_{role}_token"), bool)}
    for role in _ROLES:
        number = checkpoint.config.get(f"{role}_token_id")
        if type(number) is int and 0 <= number < size:
            ids.setdefault(role, number)
    normalizer = {} if source is None else dict(_normalizer_flags(source.pipeline.get("normalizer")))
    return Specials(ids=ids, add=add, normalizer=normalizer)


def _text(entry: Any) -> str | None:
    """A token is given as text or as an object with its content."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else None


def _apply(processor: dict[str, Any], names: dict[str, Any], add: dict[str, bool]) -> None:
    """Learn from one post-processor what surrounds a text."""
    match processor.get("type"):
        case "ByteLevel":
            add.setdefault("bos", False)
            add.setdefault("eos", False)
        case "RobertaProcessing" | "BertProcessing" as kind:
            if kind == "RobertaProcessing":
                add |= {"bos": True, "eos": True, "sep": True}
            names["cls"] = names.get("cls") or _first(processor.get("cls"))
            names["sep"] = names.get("sep") or _first(processor.get("sep"))
        case "TemplateProcessing":
            _apply_template(processor, names, add)


def _apply_template(processor: dict[str, Any], names: dict[str, Any], add: dict[str, bool]) -> None:
    single = _pieces(processor.get("single"))
    first = last = None
    if len(single) > 1:
        if first := single[0][0]:
            names["bos"] = names.get("bos") or first
            if first != names["bos"]:
                names["cls"] = names.get("cls") or first
            add["bos"] = first in (names["bos"], names.get("cls"))
        if last := single[-1][0]:
            if last != names.get("eos"):  # what ends a turn in chat is not what ends a text
                role = "eom" if names.get("eot") else "eot"
                names[role], names["eos"] = names.get("eos"), last
            add["eos"] = True
    pair = _pieces(processor.get("pair"))
    start = 1 if first and pair and pair[0][0] == first else 0
    stop = len(pair) - 1 if last and pair and pair[-1][0] == last else len(pair)
    inner = pair[start:stop]
    if len(inner) > 2 and inner[0][1] == "A" and inner[-1][1] == "B":
        between = [special for special, _ in inner[1:-1]]
        separators = (names.get("sep"), names.get("eos"))
        needed = between[0] in separators and between[0] is not None and not last
        needed = needed or (len(between) == 2 and between[1] in separators and between[1] is not None)
        add["sep"] = needed
        if needed:
            names["sep"] = names.get("sep") or names.get("eos")


def _pieces(template: Any) -> list[tuple[str | None, str | None]]:
    return [_piece(part) for part in template] if isinstance(template, list) else []


def _piece(part: Any) -> tuple[str | None, str | None]:
    """Return a template part as (special token, sequence); one of them is None."""
    found = []
    for kind in ("SpecialToken", "Sequence"):
        body = part.get(kind) if isinstance(part, dict) else None
        name = body.get("id") if isinstance(body, dict) else None
        found.append(name if isinstance(name, str) else None)
    return found[0], found[1]


def _first(pair: Any) -> str | None:
    return pair[0] if isinstance(pair, list) and pair and isinstance(pair[0], str) else None


def _normalizer_flags(normalizer: Any) -> Iterator[tuple[str, bool]]:
    """Yield what llama.cpp can do itself: lower-casing and stripping of accents."""
    for step in steps(normalizer):
        match step.get("type"):
            case "Lowercase":
                yield "lowercase", True
            case "StripAccents":
                yield "strip_accents", True
            case "BertNormalizer":
                for name in ("lowercase", "strip_accents"):
                    if isinstance(value := step.get(name), bool):
                        yield name, value
