"""Intervals and summaries: the only home of statistics. Simulated coverage: tests/stats/, benchmarks/coverage.py."""
