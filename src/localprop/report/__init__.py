"""Comparisons and benchmarks: what methods cost and gain, measured side by side."""
