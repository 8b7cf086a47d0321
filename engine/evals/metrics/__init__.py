"""Metrics: from one item and its response to additive statistics, and from their sums to a figure."""
