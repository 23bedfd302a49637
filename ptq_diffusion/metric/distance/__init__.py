"""Distances between sets of images, and between paired images."""
