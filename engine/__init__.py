"""The services both fronts share: catalogue, jobs, model workers, scheduling, HTTP, telemetry, batch.

The one door is `lathe.engine.workbench.Workbench`. Invariant: nothing here imports Textual, Rich or click, and native
inference code runs only in child processes.
"""
