"""Model workers: one child process per loaded model, and the parent's side of it.

Invariant: native inference code is imported only inside the child (`lathe.engine.worker.child`).
"""
