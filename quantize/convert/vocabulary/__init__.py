"""Tokenizers on their way into GGUF: one file per kind, special tokens, and the facts all kinds share."""
