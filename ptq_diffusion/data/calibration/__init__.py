"""Calibration sets: the states of float sampling that ranges are observed on and weights are rounded on."""

from ptq_diffusion.data.calibration.calibration_set import CalibrationSet, DrawnSet
from ptq_diffusion.data.calibration.chosen_states import ChosenStates
from ptq_diffusion.data.calibration.density import DensitySet
from ptq_diffusion.data.calibration.intervals import IntervalSet
from ptq_diffusion.data.calibration.ndtc import NDTC
from ptq_diffusion.data.calibration.uniform import UniformDraw, UniformSet

__all__ = [
    "NDTC",
    "CalibrationSet",
    "ChosenStates",
    "DensitySet",
    "DrawnSet",
    "IntervalSet",
    "UniformDraw",
    "UniformSet",
]
