"""Intervals and hypothesis tests."""
