"""What well-known embedders expect around their texts: prefixes of queries and passages, and the longest input.

A model's own folder says it better (`config_sentence_transformers.json`, `sentence_bert_config.json`); a GGUF file
carries none of it, so the family is told by the name. Invariant: an unknown model gets no prefix at all.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """How a model wants to be asked."""

    query_prefix: str = ""
    passage_prefix: str = ""
    max_tokens: int | None = None
    """Trained input length, where it is shorter than what the architecture allows."""


class _Prompts(msgspec.Struct, frozen=True):
    prompts: dict[str, str | None] = {}


class _Lengths(msgspec.Struct, frozen=True):
    max_seq_length: int | None = None


_RETRIEVE = "Represent this sentence for searching relevant passages: "
_FAMILIES: tuple[tuple[str, Profile], ...] = (
    (r"all-?minilm-?l(6|12)|minilm[- _]l(6|12)[- _]h384", Profile(max_tokens=256)),
    (r"all-?mpnet-?base", Profile(max_tokens=384)),
    (r"multilingual-e5-large-instruct|e5-mistral", Profile(
        query_prefix="Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: ")),
    (r"\be5-(small|base|large)|multilingual-e5", Profile(query_prefix="query: ", passage_prefix="passage: ")),
    (r"nomic-embed", Profile(query_prefix="search_query: ", passage_prefix="search_document: ")),
    (r"bge-(small|base|large)-en|mxbai-embed|arctic-embed", Profile(query_prefix=_RETRIEVE)),
    (r"qwen3-embedding", Profile(
        query_prefix="Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:")),
    (r"embedding-?gemma", Profile(query_prefix="task: search result | query: ", passage_prefix="title: none | text: ")),
)  # fmt: skip
"""As the models' own cards have them."""


def profile_of(names: tuple[str, ...], folder: Path | None = None) -> Profile:
    """The profile of a model, from its folder where it has one, else from the names it goes by."""
    if folder is not None and (own := _from_folder(folder)) is not None:
        return own
    text = " ".join(names).lower().replace("_", "-").replace(" ", "-")
    return next((profile for pattern, profile in _FAMILIES if re.search(pattern, text)), Profile())


def _from_folder(folder: Path) -> Profile | None:
    prompts, lengths = folder / "config_sentence_transformers.json", folder / "sentence_bert_config.json"
    if not prompts.is_file() and not lengths.is_file():
        return None
    try:
        said = msgspec.json.decode(prompts.read_bytes(), type=_Prompts).prompts if prompts.is_file() else {}
        longest = msgspec.json.decode(lengths.read_bytes(), type=_Lengths).max_seq_length if lengths.is_file() else None
    except msgspec.MsgspecError:
        return None
    return Profile(
        query_prefix=said.get("query") or said.get("s2p_query") or "",
        passage_prefix=said.get("passage") or said.get("document") or "",
        max_tokens=longest,
    )


def is_default(names: tuple[str, ...]) -> bool:
    """Whether a model goes by the name of all-MiniLM-L6-v2."""
    text = " ".join(names).lower().replace("_", "-").replace(" ", "-")
    return re.search(r"all-?minilm-?l6", text) is not None
