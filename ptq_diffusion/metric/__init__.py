"""Floor 3: what images and features are judged by. Distances of distributions, and paired distances per image."""

from ptq_diffusion.metric.bootstrap import (
    Estimate,
    Interval,
    Paired,
    paired_fid,
    paired_fid_to,
    paired_interval,
    paired_mean,
)
from ptq_diffusion.metric.feature_network import Cifar10Net, FeatureExtractor, bundled
from ptq_diffusion.metric.frechet import FeatureMoments, frechet_distance
from ptq_diffusion.metric.pixels import Pixels
from ptq_diffusion.metric.psnr import psnr
from ptq_diffusion.metric.reference import FolderReference, NoReference, Reference, StatisticsReference

__all__ = [
    "Cifar10Net",
    "Estimate",
    "FeatureExtractor",
    "FeatureMoments",
    "FolderReference",
    "Interval",
    "NoReference",
    "Paired",
    "Pixels",
    "Reference",
    "StatisticsReference",
    "bundled",
    "frechet_distance",
    "paired_fid",
    "paired_fid_to",
    "paired_interval",
    "paired_mean",
    "psnr",
]
