"""Floor 3: metrics of generated images, their feature spaces, and paired errors of both."""

from ptq_diffusion.metric.distance.classifier_score import ClassifierScore, paired_classifier_score
from ptq_diffusion.metric.distance.clip_score import CLIPScore
from ptq_diffusion.metric.distance.feature_distance import FeatureDistanceToFloat
from ptq_diffusion.metric.distance.fid import FID, FIDToFloat, SpatialFID, paired_fid, paired_fid_to
from ptq_diffusion.metric.distance.frechet import FeatureMoments, frechet_distance
from ptq_diffusion.metric.distance.kid import KID, KIDToFloat, paired_kid, paired_kid_to
from ptq_diffusion.metric.distance.neighbours import (
    Coverage,
    Density,
    Neighbourhoods,
    Precision,
    Recall,
    neighbour_metrics,
)
from ptq_diffusion.metric.distance.psnr import PSNRToFloat, psnr
from ptq_diffusion.metric.distance.ssim import SSIMToFloat, ssim
from ptq_diffusion.metric.distance_to_float import DistanceToFloat
from ptq_diffusion.metric.feature.efficientnet_lite0 import EfficientNetLite0
from ptq_diffusion.metric.feature.feature import FeatureExtractor, Features
from ptq_diffusion.metric.feature.pixels import Pixels
from ptq_diffusion.metric.feature.resnet9 import FEATURE_NETWORKS, ResNet9
from ptq_diffusion.metric.gathering import Gathering
from ptq_diffusion.metric.inference.bootstrap import (
    Estimate,
    Interval,
    Paired,
    Parts,
    paired_mean,
    paired_parts,
)
from ptq_diffusion.metric.inference.hypothesis_tests import holm, noninferiority
from ptq_diffusion.metric.judgement import Judgement, judge
from ptq_diffusion.metric.metric import FLOAT, Evidence, ImageMetric, Likeness, Metric, PromptMetric, Settings
from ptq_diffusion.metric.protocol import protocol_id
from ptq_diffusion.metric.real_statistics import RealStatistics
from ptq_diffusion.metric.reference import (
    DataSetReference,
    FolderReference,
    NoReference,
    Reference,
    StatisticsReference,
)

__all__ = [
    "CLIPScore",
    "ClassifierScore",
    "Coverage",
    "Density",
    "DataSetReference",
    "DistanceToFloat",
    "EfficientNetLite0",
    "Estimate",
    "Evidence",
    "FEATURE_NETWORKS",
    "FID",
    "FIDToFloat",
    "FLOAT",
    "FeatureDistanceToFloat",
    "FeatureExtractor",
    "FeatureMoments",
    "Features",
    "FolderReference",
    "Gathering",
    "ImageMetric",
    "Interval",
    "Judgement",
    "KID",
    "KIDToFloat",
    "Likeness",
    "Metric",
    "Neighbourhoods",
    "NoReference",
    "PSNRToFloat",
    "Paired",
    "Parts",
    "Pixels",
    "Precision",
    "PromptMetric",
    "RealStatistics",
    "Recall",
    "Reference",
    "ResNet9",
    "SSIMToFloat",
    "Settings",
    "SpatialFID",
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
    "ssim",
]
