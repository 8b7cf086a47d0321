"""RAG stores at rest: one self-describing SQLite file each, with the vectors as the truth and every index rebuildable."""
