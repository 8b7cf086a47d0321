"""The quality-size-speed laboratory: which types for which tensors, measured on the user's model, text and machine.

    yardstick     how far a mix is from the original, by next tokens or by vectors
    sensitivity   what each tensor costs in each type
    knapsack      which types for which tensors, for a size
    search        puts them together and measures what it found
    frontier      what there is to choose from, and which point answers a wish

Invariant: what is reported as measured was measured on a real file with the kernels of this machine.
"""
