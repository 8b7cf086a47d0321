"""Fill in the middle: which of a model's tokens frame the gap, and the prompt they make.

The tokens are found by asking the model's tokenizer: a marker of a known family that comes out as exactly one special
token is there. Invariant: the client's text between the markers is tokenized as plain text, so it cannot forge them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

Tokenize = Callable[[str, bool], Awaitable[list[int]]]
"""(text, parse special tokens) -> ids."""


class FimTokens(msgspec.Struct, frozen=True):
    """Token ids of the markers; `repository` and `file` only where the model knows several files."""

    prefix: int
    suffix: int
    middle: int
    repository: int | None = None
    file: int | None = None


# prefix, suffix, middle, repository, file: Qwen coder, StarCoder and Granite, CodeGemma, CodeLlama, DeepSeek, Codestral
_FAMILIES: tuple[tuple[str, str, str, str | None, str | None], ...] = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repo_name|>", "<|file_sep|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<repo_name>", "<file_sep>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>", "<reponame>", "<filename>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>", None, None),
    ("<PRE>", "<SUF>", "<MID>", None, None),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", None, None),
    ("[PREFIX]", "[SUFFIX]", "[MIDDLE]", None, None),
)


async def find(tokenize: Tokenize) -> FimTokens | None:
    """Return the model's markers, or None where it was not trained to fill gaps."""

    async def single(marker: str | None) -> int | None:
        ids = await tokenize(marker, True) if marker else []
        return ids[0] if len(ids) == 1 else None

    for prefix, suffix, middle, repository, file in _FAMILIES:
        first = await single(prefix)
        if first is None:
            continue
        second, third = await single(suffix), await single(middle)
        if second is not None and third is not None and len({first, second, third}) == 3:
            return FimTokens(first, second, third, await single(repository), await single(file))
    return None


async def build(
    tokenize: Tokenize, marks: FimTokens, prefix: str, suffix: str, extra: list[tuple[str, str]], prompt: str = ""
) -> tuple[int, ...]:
    """Return the token ids that ask for what stands between prefix and suffix.

    Args:
        extra: (file name, text) of other files of the same repository, farthest first.
        prompt: how the middle begins.
    """
    ids: list[int] = []
    if extra and marks.repository is not None and marks.file is not None:
        ids += [marks.repository, *await tokenize("repository\n", False)]
        for name, text in extra:
            ids += [marks.file, *await tokenize(f"{name}\n{text}\n", False)]
        ids.append(marks.file)
    else:
        for _, text in extra:
            ids += await tokenize(f"{text}\n", False)
    ids += [marks.prefix, *await tokenize(prefix, False)]
    ids += [marks.suffix, *await tokenize(suffix, False)]
    ids += [marks.middle, *await tokenize(prompt, False)]
    return tuple(ids)
