"""Checks before a run: that nothing is built that may not be, that options are such, fit each other and the machine."""
