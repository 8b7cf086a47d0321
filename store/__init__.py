"""Data at rest: SQLite, its driver and lock, migrations, and one repository per noun.

This floor knows nothing of models' formats, services or screens. Invariant: one writer per file, and what was
acknowledged is on disk.
"""
