"""RAG stores at rest: one self-describing SQLite file each, vectors as the truth, every index rebuildable."""
