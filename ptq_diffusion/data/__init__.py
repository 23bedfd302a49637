"""Floor 1: the data that networks are trained, judged, calibrated and drawn with: images, labels, prompts, states."""

from ptq_diffusion.data.calibration import (
    NDTC,
    CalibrationSet,
    ChosenStates,
    DensitySet,
    IntervalSet,
    UniformDraw,
    UniformSet,
)
from ptq_diffusion.data.captions import CaptionedImages
from ptq_diffusion.data.images import FolderImages, ImageSource, LabelledImages, ParquetImages
from ptq_diffusion.data.labels import Labels
from ptq_diffusion.data.prompts import CaptionPrompts, Prompts, TextPrompts

__all__ = [
    "NDTC",
    "CalibrationSet",
    "CaptionPrompts",
    "CaptionedImages",
    "ChosenStates",
    "DensitySet",
    "FolderImages",
    "ImageSource",
    "IntervalSet",
    "LabelledImages",
    "Labels",
    "ParquetImages",
    "Prompts",
    "TextPrompts",
    "UniformDraw",
    "UniformSet",
]
