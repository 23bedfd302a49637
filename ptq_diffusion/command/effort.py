"""About how long stages take beside each other, for the time left that a run tells while it goes on."""

from collections.abc import Callable, Mapping

from omegaconf import DictConfig

from ptq_diffusion.correction import Reads
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import Need
from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.drawing.drift import MeasureDrift
from ptq_diffusion.stage.drawing.layers import MeasureLayers
from ptq_diffusion.stage.evaluate import Evaluate
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.float_path import FloatPath
from ptq_diffusion.stage.noise import Noise
from ptq_diffusion.stage.planning.changes import MeasureChanges
from ptq_diffusion.stage.rounding.learn_scales import LearnScales
from ptq_diffusion.stage.rounding.offered import RoundOffers
from ptq_diffusion.stage.rounding.reconstruct import Reconstruct
from ptq_diffusion.stage.samples_corrected import CorrectedSamples
from ptq_diffusion.stage.samples_full_precision import FullPrecisionSamples
from ptq_diffusion.stage.samples_quantized import QuantizedSamples
from ptq_diffusion.stage.step_signal import MeasureStepSignal
from ptq_diffusion.stage.trajectories import Trajectories


def _drawn(cfg: DictConfig) -> float:
    return float(cfg.images * len(cfg.seeds))


def _fitted(cfg: DictConfig) -> float:
    """Samplings of a fit: of images along a path, or of trial images of every candidate; of moments next to none."""
    if "candidates" in cfg.correction:
        return float(cfg.correction.images * (1 + len(cfg.correction.candidates)))
    return 1.0 if construct(cfg.correction).reads is Reads.MOMENTS else 3.0 * cfg.noise.images


SAMPLINGS: Mapping[str, Callable[[DictConfig], float]] = {
    Trajectories.name: lambda cfg: cfg.calibration.images,
    Calibrate.name: lambda cfg: 1.2 * cfg.calibration.images,
    Reconstruct.name: lambda cfg: 3.0 * cfg.calibration.images,
    RoundOffers.name: lambda cfg: 3.0 * cfg.calibration.images,
    LearnScales.name: lambda cfg: 3.0 * cfg.calibration.images,
    FloatPath.name: lambda cfg: 1.6 * cfg.noise.images,
    Noise.name: lambda cfg: 2.0 * cfg.noise.images,
    MeasureStepSignal.name: lambda cfg: 1.0 * cfg.noise.images * len(construct(cfg.bitwidth).offered),
    MeasureChanges.name: lambda cfg: 13.0 * cfg.sensitivity.images,
    Fit.name: _fitted,
    FullPrecisionSamples.name: lambda cfg: 0.6 * _drawn(cfg),
    QuantizedSamples.name: lambda cfg: 0.8 * _drawn(cfg),
    CorrectedSamples.name: lambda cfg: 0.8 * _drawn(cfg),
    MeasureDrift.name: lambda cfg: 2.2 * cfg.drift.images,
    MeasureLayers.name: lambda cfg: 6.0 * cfg.layers.images,
    Evaluate.name: lambda cfg: 0.2 * _drawn(cfg),
}
"""Float samplings of one image, as measured on two CPU cores; stages that are not named take next to nothing."""


def effort(need: Need) -> float:
    """About how many float samplings of one image an artefact takes."""
    return SAMPLINGS.get(need.stage.name, lambda _: 1.0)(need.cfg)
