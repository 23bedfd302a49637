"""Rows of a table as far as networks need them."""

from types import SimpleNamespace


def at(t, i=0):
    """The row `i` of a table, at time t."""
    return SimpleNamespace(i=i, t=float(t), input_scale=1.0)
