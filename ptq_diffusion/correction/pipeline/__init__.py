"""Corrected networks and schedulers that stock diffusers pipelines load."""
