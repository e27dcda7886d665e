"""Comparisons, benchmarks and simulated pipelines: what methods cost and gain, side by side."""
