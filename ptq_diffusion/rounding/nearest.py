"""Rounding to nearest."""

from ptq_diffusion.rounding.rounding import Reads, Rounding


class Nearest(Rounding):
    """Every weight goes to its nearest integer, ties to even; nothing is read for it."""

    reads = Reads.NOTHING
