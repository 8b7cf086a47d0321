"""Jobs: long work with progress, cancel, resume and history.

`values` what a job is; `kinds` which code runs a step; `runner` the queue and the children; `child` the process a job
runs in; one module per kind of work. Invariant: a job's native work happens in its own process group, so that killing
it harms nothing else.
"""
