"""Screens: one place of the workbench or one dialog per file; they wire widgets to calls of the `Workbench`."""
