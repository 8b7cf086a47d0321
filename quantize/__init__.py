"""Files in, files out: model formats, conversion and quantization.

This floor reads and writes model artefacts (GGUF, safetensors, imatrix) and knows nothing of databases, services or
screens. Invariant: no function here leaves a partial file under its final name.
"""
