"""Retrieval-augmented generation: documents in, passages and vectors into a store, ranked passages and answers out."""
