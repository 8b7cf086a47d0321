"""The llama.cpp backend: the ring of effects around `lathe.engine.scheduler`."""
