"""Programs that a model wrote, run in a child process that the kernel confines."""
