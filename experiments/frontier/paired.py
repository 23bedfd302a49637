"""The difference in FID of the corrected images of two runs: python -m experiments.frontier.paired RUN RUN.

RUN is the folder of a run. Both have the same model, seeds and number of images, so that image i of both comes from
the same noise.
"""

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from safetensors.torch import load_file

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.metric.distance.fid import paired_fid


def main(first: str, second: str) -> None:
    """Print the difference, first less second, with its interval."""
    configurations = [OmegaConf.load(Path(run) / "config.yaml") for run in (first, second)]
    cfg, other = configurations
    assert isinstance(cfg, DictConfig) and isinstance(other, DictConfig)
    if any(cfg[name] != other[name] for name in ("model", "seeds", "images", "feature", "reference")):
        raise ValueError("expected two runs of the same model, seeds, images and features, got different ones")
    vectors = {
        run: load_file(Path(run) / "features" / "corrected.safetensors")["vectors"].float() for run in (first, second)
    }
    reference = construct(cfg.reference).statistics(construct(cfg.feature.extractor)).moments
    paired = paired_fid(vectors, reference, cfg.judging.replicates, cfg.judging.seed, strata=len(cfg.seeds))
    interval = paired.differences[first, second]
    Console(width=140).print(f"{interval.difference:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
