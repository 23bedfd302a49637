"""Batches of which the float network was asked about the first images only."""

from ptq_diffusion.correction import PairedBatch, PathBatch


def split(whole, asked):
    """The first images with m, the others without."""
    first, rest = [], []
    for batch in whole:
        here = min(max(asked - batch.first, 0), len(batch.q))
        if here > 0:
            first.append(PairedBatch(batch.first, *(t[:here] for t in fields_of(batch)), batch.m[:here]))
        if here < len(batch.q):
            rest.append(PathBatch(batch.first + here, *(t[here:] for t in fields_of(batch))))
    return first, rest


def fields_of(batch):
    return batch.q, batch.x_t, batch.features, batch.float_m, batch.float_x_t
