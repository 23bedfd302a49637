"""Repairs: what a fitted correction does with the output of one step."""
