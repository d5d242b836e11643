"""Intervals and summaries: the only home of statistics."""
