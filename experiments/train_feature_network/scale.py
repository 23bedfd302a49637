"""What distances in a feature space mean: python experiments/train_feature_network/scale.py OVERRIDE ...

The overrides choose data, metric and reference, such as data=cifar10 data.folder=FOLDER; the images are the test split.
"""

import sys
from collections.abc import Mapping

import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from ptq_diffusion.command.conf import CONF
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.metric import FeatureMoments, frechet_distance, paired_fid, psnr

COUNTS = (256, 1024, 3072, 10000)
SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.2)


def degraded(images: Tensor) -> Mapping[str, Tensor]:
    """Images (N, C, H, W) uint8 as they are, with Gaussian noise, at half resolution, and random bytes instead."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=draw)
    noisy = {f"noise {s}": ((images / 255 + s * noise).clamp(0, 1) * 255).round().to(torch.uint8) for s in SIGMAS}
    half = F.interpolate(F.avg_pool2d(images.float(), 2), scale_factor=2.0, mode="bilinear")
    return {
        "clean": images,
        **noisy,
        "half resolution": half.round().clamp(0, 255).to(torch.uint8),
        "random bytes": torch.randint(256, images.shape, generator=draw).to(torch.uint8),
    }


def main() -> None:
    """Distances of clean test images by their count, then of degraded ones."""
    say = Console(soft_wrap=True, highlight=False).print
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*sys.argv[1:], "data.split=test"])
    extractor = construct(cfg.feature.extractor)
    reference = construct(cfg.reference).statistics(extractor).moments
    images = construct(cfg.data).load().images
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    for count in COUNTS:
        say(f"{count} {frechet_distance(FeatureMoments.of_images(images[:count], extractor), reference):.3f}")
    variants = degraded(images[:3072])
    features = {name: extractor.features(batch) for name, batch in variants.items()}
    found = paired_fid(features, reference, 200, 0)
    for name, batch in variants.items():
        estimate, gap = found.estimates[name], found.differences.get(("clean", name))
        interval = "" if gap is None else f"{-gap.high:.3f} .. {-gap.low:.3f}"
        ratio = psnr(batch, images[:3072]).mean()
        say(f"{name}: {ratio:.1f} dB, {estimate.value:.3f} +- {estimate.standard_error:.3f}, {interval}")


if __name__ == "__main__":
    main()
