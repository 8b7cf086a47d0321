"""Proof that a converted tokenizer is the original: both tokenize the same probe text, in a child process."""
