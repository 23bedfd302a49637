"""FID, FID to float and PSNR to float of images that a script of an experiment draws by itself."""

from collections.abc import Mapping

from omegaconf import DictConfig
from torch import Tensor

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.metric import paired_fid, paired_fid_to, psnr
from ptq_diffusion.stage.samples_full_precision import FullPrecisionSamples

REPLICATES, SEED = 200, 0
"""Of the resampling that gives the standard errors."""


def judged(cfg: DictConfig, images: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Cells of a table for each variant: FID and FID to float with standard errors, and PSNR in decibels.

    Args:
        cfg: names the feature space, the reference and the seeds.
        images: by variant, (N, C, H, W) uint8, seed by seed; those of full precision by their stage's name.
    """
    extractor, first, strata = construct(cfg.feature.extractor), FullPrecisionSamples.name, len(cfg.seeds)
    features = {name: extractor.features(own) for name, own in images.items()}
    reference = construct(cfg.reference).statistics(extractor).moments
    fid = paired_fid(features, reference, REPLICATES, SEED, strata=strata).estimates
    to_float = paired_fid_to(first, features, extractor.checksum(), REPLICATES, SEED, strata=strata).estimates
    rows = {}
    for name, own in images.items():
        estimates = [f"{value.value:.2f} ± {value.standard_error:.2f}" for value in (fid[name], to_float[name])]
        rows[name] = [*estimates, f"{psnr(own, images[first]).mean().item():.1f}"]
    return rows
