"""The command line: thin verbs over the `Workbench`, one module per group of verbs.

Invariant: stdout is data, stderr is narration, and the exit code is `lathe.engine.errors.ExitCode`.
"""
