"""llama.cpp's ways to cut text before byte-level BPE, and which of them a tokenizer.json seems to mean.

A proposal only orders the candidates; what the tokenizers do with the probe text decides. Several names share one
behaviour in llama.cpp: the list holds one name for each that exists.
"""

from __future__ import annotations

from typing import Any

from lathe.quantize.convert.vocabulary.source import steps

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

BY_PATTERN: dict[str, str] = {
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL: "llama-bpe",
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL: "qwen2",
}
"""The regular expression of the first Split step -> the candidate that was made for it."""

CANDIDATES = (
    "gpt-2",
    "llama-bpe",
    "qwen2",
    "smollm",
    "tekken",
    "gpt-4o",
    "dbrx",
    "qwen35",
    "deepseek-v3",
    "deepseek-llm",
    "deepseek-coder",
    "falcon",
    "viking",
    "bloom",
    "jais-2",
    "kimi-k2",
    "superbpe",
    "seed-coder",
    "tiny_aya",
    "granite-embed-multi-97m",
    "youtu",
    "exaone-moe",
    "afmoe",
    "laguna",
    "ufakzeka",
    "minicpm5",
    "spark2_5",
    "chameleon",
    "default",
)


def candidates(pre_tokenizer: Any) -> list[str]:
    """List every candidate, the one that the tokenizer.json seems to mean first."""
    proposal = propose(pre_tokenizer)
    return [proposal, *(name for name in CANDIDATES if name != proposal)]


def propose(pre_tokenizer: Any) -> str:
    """Read the steps of a pre-tokenizer and name the candidate that looks like it."""
    found = list(steps(pre_tokenizer))
    for step in found:
        pattern = step.get("pattern")
        expression = pattern.get("Regex") if isinstance(pattern, dict) else None
        if step.get("type") == "Split" and isinstance(expression, str) and expression in BY_PATTERN:
            return BY_PATTERN[expression]
    return "smollm" if any(step.get("type") == "Digits" for step in found) else "gpt-2"
