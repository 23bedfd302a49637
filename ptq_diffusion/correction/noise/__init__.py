"""Measurements of the quantization noise."""
