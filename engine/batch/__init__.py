"""Headless pipelines: a plan file becomes typed steps, which run through the `Workbench` like everybody's.

`plan` reads and validates, `execution` runs, `reports` writes JSON lines, JUnit and Markdown. Invariant: nothing runs
before the whole plan is valid.
"""
