"""Metrics, one file each: distances between sets of images and between paired images."""
