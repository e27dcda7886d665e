"""Comparisons, benchmarks and pipeline plans: what methods cost and gain, side by side."""
