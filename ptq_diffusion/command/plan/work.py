"""The work and the bytes of every stage, from the configuration alone."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from ptq_diffusion.command.plan.activations import call_bytes
from ptq_diffusion.command.plan.bits import learned_parts
from ptq_diffusion.command.plan.bytes import (
    bytes_of_coefficients,
    bytes_of_features,
    bytes_of_layer_chunks,
    bytes_of_layer_errors,
    bytes_of_noise,
    bytes_of_observations,
    bytes_of_path_fit,
    bytes_of_prompts,
    bytes_of_quantized,
    bytes_of_scales,
)
from ptq_diffusion.command.plan.case import Case
from ptq_diffusion.correction import Auto, Correction, Reads
from ptq_diffusion.correction.method.qncd import QNCD
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.model import Pixels
from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.calibration.choose_states import ChooseStates
from ptq_diffusion.stage.drawing.drift import MeasureDrift, drift_chunks
from ptq_diffusion.stage.drawing.image_files import ImageFiles
from ptq_diffusion.stage.drawing.layers import MeasureLayers
from ptq_diffusion.stage.drawing.side_by_side import COMPARED
from ptq_diffusion.stage.evaluate import Evaluate
from ptq_diffusion.stage.export import Export
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.float_path import FloatPath
from ptq_diffusion.stage.noise import Noise
from ptq_diffusion.stage.plan import Plan
from ptq_diffusion.stage.planning.additions import CorrectionAdditions, OutsidePlan
from ptq_diffusion.stage.planning.changes import MeasureChanges, offering_policy
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.quantize import Quantize
from ptq_diffusion.stage.reference import ReferenceStatistics
from ptq_diffusion.stage.rounding.learn_scales import LearnScales
from ptq_diffusion.stage.samples_corrected import CorrectedSamples
from ptq_diffusion.stage.samples_full_precision import FullPrecisionSamples
from ptq_diffusion.stage.samples_quantized import QuantizedSamples
from ptq_diffusion.stage.sensitivity import MeasureSensitivity
from ptq_diffusion.stage.step_signal import MeasureStepSignal
from ptq_diffusion.stage.trajectories import Trajectories


@dataclass(frozen=True)
class Work:
    """The work of a stage and what it leaves in the store.

    Args:
        float_passes: rows that the float network is asked about, padding of micro-batches included.
        quantized_passes: rows that the quantized network is asked about.
        backward_passes: rows that gradients are taken of.
        layer_passes: rows that all layers alone are computed on.
        decoded: images that latents are decoded to.
        kept: bytes of the artefact.
        scratch: bytes beside them while it is made.
    """

    float_passes: int = 0
    quantized_passes: int = 0
    backward_passes: int = 0
    layer_passes: int = 0
    decoded: int = 0
    kept: int = 0
    scratch: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(**{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(Work)})


def work_of(stage: str, case: Case) -> Work | None:
    """The work of a stage; None of one that no rule tells of."""
    rule = RULES.get(stage)
    return None if rule is None else rule(case)


def _trajectories(case: Case) -> Work:
    images = case.cfg.calibration.images
    return Work(case.padded(images) * case.rows, kept=images * len(case.table) * case.state_bytes)


def _calibrate(case: Case) -> Work:
    """Each device observes its share and leaves what it counted, of which all together is the artefact."""
    observed, passes = bytes_of_observations(case), 2 if case.equalised else 1
    sharers = min(case.cfg.runtime.devices, math.ceil(case.cfg.calibration.images / case.cfg.micro_batch))
    return Work(passes * _chosen_rows(case), kept=observed, scratch=sharers * observed)


def _chosen_rows(case: Case) -> int:
    """The rows that the network is asked about for the states of the calibration set."""
    images, steps = case.cfg.calibration.images, len(case.table)
    share = Fraction(construct(case.cfg.calibration_set).size(steps, images), steps * images)
    return int(images * case.rows * share)


def _learned_scales(case: Case) -> Work:
    """For every part both networks up to it on the calibration set, and its layers alone while its scales are learned.

    A part is asked about one and two rows first, and the layers' order in one. A gradient costs two passes more, and
    errors are taken before and behind. On the disk are the calls of one part.
    """
    rule, parts, rows = construct(case.cfg.activation_scales), learned_parts(case), _chosen_rows(case)
    beside = (1 + 3 * len(parts)) * case.model.rows_per_image(case.table[0])
    alone = 2 * rows + 3 * rule.iterations * rule.calls * rule.rows
    calls = rows * call_bytes(case.shop.model(case.cfg), parts)
    asked = len(parts) * rows
    return Work(asked + beside, asked, layer_passes=alone, kept=bytes_of_scales(case), scratch=calls)


def _calibration_set(case: Case) -> Work:
    """The features of a few images at every step, and a pass that finds the block, where the set reads them."""
    images = min(construct(case.cfg.calibration_set).feature_images, case.cfg.calibration.images)
    return Work(images * (case.rows + case.model.rows_per_image(case.table[0])))


def _float_path(case: Case) -> Work:
    images = case.padded(case.cfg.noise.images)
    return Work(images * case.fit_rows, kept=images * len(case.fit_table) * case.answer_bytes)


def _step_signal(case: Case) -> Work:
    offers = len(construct(case.cfg.bitwidth).offered)
    return Work(quantized_passes=offers * case.padded(case.cfg.noise.images) * case.fit_rows)


def _changes(case: Case) -> Work:
    passes = case.cfg.sensitivity.images * case.rows
    bitwidths, numbers = _offered_numbers(case)
    return Work(passes, 0, passes, bitwidths * passes, kept=8 * numbers * case.cfg.sensitivity.images)


def _offered_numbers(case: Case) -> tuple[int, int]:
    """The bitwidths that are measured, and how many numbers they are over all layers and steps."""
    policy = offering_policy(case.cfg)
    bitwidths = len(policy.weights) + len(policy.activations)
    return bitwidths, bitwidths * len(policy.roles.free(case.model.sites())) * len(case.table)


def _noise(case: Case) -> Work:
    return Work(quantized_passes=case.padded(case.cfg.noise.images) * case.fit_rows, kept=bytes_of_noise(case))


def _fit(case: Case) -> Work:
    """The work of a fit; a choice draws images of every candidate and keeps the coefficients of one of them."""
    correction = construct(case.cfg.correction)
    if isinstance(correction, Auto):
        images, candidates = case.padded(correction.images), len(correction.candidates)
        kept = max(bytes_of_coefficients(candidate, case) for candidate in correction.candidates.values())
        drawn = Work(
            images * case.rows, images * case.rows * candidates, scratch=images * (1 + candidates) * case.image_bytes
        )
        return drawn + Work(decoded=_decoded(case, images * (1 + candidates)), kept=kept)
    kept = bytes_of_coefficients(correction, case)
    if correction.reads is Reads.MOMENTS:
        return Work(kept=kept)
    return _path_passes(correction, case) + Work(kept=kept, scratch=bytes_of_path_fit(correction, case))


def _path_passes(correction: Correction[Any], case: Case) -> Work:
    """The passes of a fit along a path: all images at every step, and some of them for m and for rescaled layers."""
    images = case.cfg.noise.images
    rescaled = min(correction.images_for_rescaling, images)
    judging = rescaled // 4
    with_m = images if correction.images_with_m is None else min(correction.images_with_m, images)
    asked = max(rescaled, with_m if correction.reads is Reads.CORRECTED_PATH else 0)
    # Rescaled layers are chosen in a pass on three of four images and judged on the others, with and without.
    quantized = case.padded(images) + (rescaled - judging) + 2 * judging
    if correction.looks_ahead:
        asked, quantized = asked + rescaled, quantized + rescaled - judging
    return Work(asked * case.fit_rows, quantized * case.fit_rows)


def _samples(case: Case) -> Work:
    return Work(decoded=_decoded(case, case.drawn), kept=case.cfg.images * len(case.cfg.seeds) * case.image_bytes)


def _samples_full_precision(case: Case) -> Work:
    return _samples(case) + Work(case.drawn * case.rows)


def _samples_quantized(case: Case) -> Work:
    return _samples(case) + Work(quantized_passes=case.drawn * case.rows)


def _samples_corrected(case: Case) -> Work:
    return _samples(case) + Work(quantized_passes=case.drawn * _corrected_rows(case))


def _corrected_rows(case: Case) -> int:
    """The rows that the corrected network is asked about for one image."""
    correction = construct(case.cfg.correction)
    again = case.table[:: correction.every] if isinstance(correction, QNCD) else ()
    return case.rows + sum(case.model.rows_per_image(step) for step in again)


def _drift(case: Case) -> Work:
    """All variants side by side, in chunks of fewer images where there are fewer; sums are all that is kept."""
    chunks = drift_chunks(case.cfg)
    images = sum(chunk.size for chunk in chunks)
    return Work(images * case.rows, images * (case.rows + _corrected_rows(case)))


def _layers(case: Case) -> Work:
    """All variants side by side, and the layers of the quantized ones on the float network's inputs besides."""
    images = case.cfg.layers.images
    alone = len(COMPARED) * images * case.rows
    passes = Work(images * case.rows, images * (case.rows + _corrected_rows(case)), layer_passes=alone)
    return passes + Work(kept=bytes_of_layer_errors(case), scratch=bytes_of_layer_chunks(case))


def _decoded(case: Case, images: int) -> int:
    """The images of so many that an autoencoder decodes."""
    return 0 if isinstance(case.shop.decoder(case.cfg), Pixels) else images


RULES: Mapping[str, Callable[[Case], Work]] = {
    EncodePrompts.name: lambda case: Work(kept=bytes_of_prompts(case)),
    Trajectories.name: _trajectories,
    ChooseStates.name: _calibration_set,
    Calibrate.name: _calibrate,
    LearnScales.name: _learned_scales,
    FloatPath.name: _float_path,
    MeasureStepSignal.name: _step_signal,
    MeasureChanges.name: _changes,
    MeasureSensitivity.name: lambda case: Work(kept=8 * _offered_numbers(case)[1]),
    Quantize.name: lambda case: Work(kept=bytes_of_quantized(case)),
    Noise.name: _noise,
    Fit.name: _fit,
    FullPrecisionSamples.name: _samples_full_precision,
    QuantizedSamples.name: _samples_quantized,
    CorrectedSamples.name: _samples_corrected,
    MeasureDrift.name: _drift,
    MeasureLayers.name: _layers,
    Evaluate.name: lambda case: Work(kept=bytes_of_features(case), scratch=bytes_of_features(case)),
} | dict.fromkeys(
    (
        *(CorrectionAdditions.name, OutsidePlan.name, Plan.name),
        *(Export.name, ImageFiles.name, ReferenceStatistics.name),
    ),
    lambda _: Work(),
)
"""The rule of a stage of sampling; one without a network leaves next to nothing, or images a second time."""
