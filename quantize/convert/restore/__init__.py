"""The way back: a GGUF file, quantized or not, to a checkpoint folder that transformers loads."""
