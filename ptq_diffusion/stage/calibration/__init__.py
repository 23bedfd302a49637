"""Calibration: which states of float sampling are looked at."""
