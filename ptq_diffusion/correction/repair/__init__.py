"""Repairs of the output of one step."""
