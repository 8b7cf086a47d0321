"""The two fronts: the Textual app and the command line.

Screens wire, widgets draw, the engine thinks: nothing here computes results. Invariant: foreign text reaches the
terminal only through `lathe.tui.text`.
"""
