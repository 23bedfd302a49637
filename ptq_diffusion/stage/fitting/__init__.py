"""The images that a correction is fitted on along a path."""
