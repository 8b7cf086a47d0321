"""GGUF files, read strictly: the preflight that runs before any native code sees a file.

`header.read_header` and `header.read_sharded` are the doors. Invariant: whatever the bytes are, reading ends in a
`GgufHeader` or a `GgufError`, in bounded time and memory.
"""
