"""Measuring models with llama.cpp's own procedures: perplexity, divergence, speed, importance."""
