"""Widgets: they draw values and post intentions; none of them knows the engine."""
