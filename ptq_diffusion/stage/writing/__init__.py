"""Stages that write a quantized network for other programs."""
