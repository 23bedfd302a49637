"""Floor 1: images, labels and prompts on disk: what networks are trained and judged on, and drawn with."""

from ptq_diffusion.data.captions import CaptionedImages
from ptq_diffusion.data.images import FolderImages, ImageSource, LabelledImages, ParquetImages
from ptq_diffusion.data.labels import Labels
from ptq_diffusion.data.prompts import CaptionPrompts, Prompts, TextPrompts

__all__ = [
    "CaptionPrompts",
    "CaptionedImages",
    "FolderImages",
    "ImageSource",
    "LabelledImages",
    "Labels",
    "ParquetImages",
    "Prompts",
    "TextPrompts",
]
