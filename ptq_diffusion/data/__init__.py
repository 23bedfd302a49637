"""Floor 1: images on disk, which a network is trained on and samples are judged against."""

from ptq_diffusion.data.images import FolderImages, ImageSource, LabelledImages, ParquetImages

__all__ = ["FolderImages", "ImageSource", "LabelledImages", "ParquetImages"]
