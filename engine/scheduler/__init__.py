"""Which rows the next batch holds: continuous batching, prefix sharing, fairness and memory as pure decisions.

Nothing here knows llama.cpp, does I/O or reads a clock: time is passed in, effects are returned as values.
"""
