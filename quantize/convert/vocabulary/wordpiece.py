"""WordPiece (BERT): words in pieces, continued ones marked with `##`.

llama.cpp marks the other end: a piece that starts a word begins with `▁`, a continued one stands as it is.
"""

from __future__ import annotations

from lathe.quantize.convert.vocabulary.model import TokenType, Vocabulary, encoded
from lathe.quantize.convert.vocabulary.source import TokenizerSource, padded_tokens


def wordpiece(source: TokenizerSource, size: int) -> Vocabulary:
    """Convert a WordPiece tokenizer."""
    given = source.model.get("continuing_subword_prefix")
    prefix = given if isinstance(given, str) and given else "##"
    texts, types = padded_tokens(source, size)

    def marked(text: str, kind: int) -> str:
        if kind == TokenType.CONTROL:
            return text
        return text.removeprefix(prefix) if text.startswith(prefix) else f"▁{text}"

    return Vocabulary(
        model="bert",
        tokens=encoded([marked(text, kind) for text, kind in zip(texts, types, strict=True)]),
        types=types,
    )
