"""Floor 3: metrics of generated images, their feature spaces, and paired errors of both."""

from ptq_diffusion.metric.distance.classifier_score import paired_classifier_score
from ptq_diffusion.metric.distance.fid import paired_fid, paired_fid_to
from ptq_diffusion.metric.distance.frechet import FeatureMoments, frechet_distance
from ptq_diffusion.metric.distance.kid import paired_kid, paired_kid_to
from ptq_diffusion.metric.distance.neighbours import Neighbourhoods, neighbour_metrics
from ptq_diffusion.metric.distance.psnr import psnr
from ptq_diffusion.metric.distance.ssim import ssim
from ptq_diffusion.metric.distance_to_float import DistanceToFloat
from ptq_diffusion.metric.feature.feature import FeatureExtractor, Features
from ptq_diffusion.metric.feature.pixels import Pixels
from ptq_diffusion.metric.feature.resnet9 import FEATURE_NETWORKS, ResNet9
from ptq_diffusion.metric.inference.bootstrap import (
    Estimate,
    Interval,
    Paired,
    Parts,
    paired_mean,
    paired_parts,
)
from ptq_diffusion.metric.inference.hypothesis_tests import holm, noninferiority
from ptq_diffusion.metric.judgement import Judgement, Settings, judge
from ptq_diffusion.metric.protocol import protocol_id, require_one_protocol
from ptq_diffusion.metric.real_statistics import RealStatistics
from ptq_diffusion.metric.reference import FolderReference, NoReference, Reference, StatisticsReference

__all__ = [
    "FEATURE_NETWORKS",
    "DistanceToFloat",
    "Estimate",
    "FeatureExtractor",
    "FeatureMoments",
    "Features",
    "FolderReference",
    "Interval",
    "Judgement",
    "Neighbourhoods",
    "NoReference",
    "Paired",
    "Parts",
    "Pixels",
    "RealStatistics",
    "Reference",
    "ResNet9",
    "Settings",
    "StatisticsReference",
    "frechet_distance",
    "holm",
    "judge",
    "neighbour_metrics",
    "noninferiority",
    "paired_classifier_score",
    "paired_fid",
    "paired_fid_to",
    "paired_kid",
    "paired_kid_to",
    "paired_mean",
    "paired_parts",
    "protocol_id",
    "psnr",
    "require_one_protocol",
    "ssim",
]
