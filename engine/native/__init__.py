"""llama.cpp from Python with its memory managed: models, contexts and batches over the low-level bindings.

Children of the engine import this; the engine process and the fronts never do.
"""
