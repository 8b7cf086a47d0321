"""llama.cpp's own converter, for architectures that ours does not know: fetched once, checked, kept, carried, run.

    archive     members taken out of a tar under allow-list and caps; packing
    store       the versions in a workspace: install, list, pack, remove
    official    a conversion in a child of its own

Invariant: what runs is what the known hash of llama-cpp-python's source says, file by file, every time.
"""
