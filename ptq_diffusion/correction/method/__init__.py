"""Correction methods, one file each."""
