"""The difference in FID of the corrected images of two runs: python -m experiments.frontier.paired RUN RUN.

RUN is the folder of a run; both are of the same model, seeds and number of images. First less second, with the 95 %
interval.
"""

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.metric import paired_fid
from ptq_diffusion.metric.feature.feature import Features

SHARED = ("model", "seeds", "images", "feature", "reference")
"""What both runs have in common, so that image i of both comes from the same noise."""


def main(first: str, second: str) -> None:
    """Print the difference, first less second, with its interval."""
    if Path(first).resolve() == Path(second).resolve():
        raise ValueError(f"expected two runs, got {first} twice")
    cfg, other = (OmegaConf.load(Path(run) / "config.yaml") for run in (first, second))
    assert isinstance(cfg, DictConfig) and isinstance(other, DictConfig)
    for name in SHARED:
        if cfg[name] != other[name]:
            raise ValueError(f"expected two runs of the same {name}, got {cfg[name]} and {other[name]}")
    extractor = construct(cfg.feature.extractor)
    files = {run: Path(run) / "features" / "corrected.safetensors" for run in (first, second)}
    vectors = {run: Features.load(file, extractor.checksum()).vectors for run, file in files.items()}
    reference = construct(cfg.reference).statistics(extractor).moments
    paired = paired_fid(vectors, reference, cfg.judging.replicates, cfg.judging.seed, strata=len(cfg.seeds))
    interval = paired.differences[first, second]
    Console(width=140).print(f"{interval.difference:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
