"""Repairs: maps from a quantized output to an estimate of the float output at one step."""
