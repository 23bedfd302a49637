"""Corrections one behind the other."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Self

from torch import Tensor

from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.correction.contract import Correction, JointRequirements, Reads
from ptq_diffusion.correction.evidence import PathEvidence
from ptq_diffusion.correction.fitted import StepCorrection
from ptq_diffusion.correction.measurement import StepMeasurement
from ptq_diffusion.correction.path_state import PathState
from ptq_diffusion.model import Denoiser
from ptq_diffusion.network import QuantizedDenoiser, Rescaling
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table


class Chain(JointRequirements, Correction[PathEvidence]):
    """m~ of every link is q of the next: each is fitted at a step to what the links before it leave of the noise.

    The first link may rescale layers, of which all others see the result. sigma' is that of the last link. The report
    is of the whole chain; its held-out R^2 is that of the first link which measures it, as a regression does.

    Args:
        links: corrections that are fitted along one path, by name, in their order.

    Raises:
        ValueError: there is no link, a link reads moments, links read different paths or, behind one that rescales
            layers, ask the float network about different numbers of images, or another link than the first rescales
            layers, or than the last sets sigma'.
    """

    def __init__(self, links: Mapping[str, Correction[PathEvidence]]) -> None:
        _require_links(links)
        self.links = dict(links)
        first, last = next(iter(links.values())), list(links.values())[-1]
        self.reads, self.keeps_sigma = first.reads, last.keeps_sigma
        self.looks_ahead, self.keeps_outputs = first.looks_ahead, first.keeps_outputs
        self.differences = first.differences
        self.images_for_rescaling, self.images_with_m = first.images_for_rescaling, last.images_with_m
        self.is_divisible, self.maps_output = first.is_divisible, any(link.maps_output for link in links.values())

    def _check_all(self, check: Callable[[Correction[Any]], None]) -> None:
        for name, link in self.links.items():
            try:
                check(link)
            except ValueError as error:
                raise ValueError(f"of the link {name}: {error}") from error

    def check_carried(self, steps: Table) -> None:
        super().check_carried(steps)
        # A repair that one of two steps lacks is found by its kind, which two links of one class share.
        kinds = [type(link) for link in self.links.values()]
        if twice := [name for name, kind in zip(self.links, kinds, strict=True) if kinds.count(kind) > 1]:
            raise ValueError(
                f"expected links of different classes to carry onto another table, got {', '.join(twice)} of one; "
                "set noise.steps=null"
            )

    def additions(self, steps: Table, shape: tuple[int, ...], patch_size: int) -> Additions:
        parts = (link.additions(steps, shape, patch_size) for link in self.links.values())
        return sum(parts, Additions())

    def ahead(self, model: Denoiser, quantized: QuantizedDenoiser, path: Iterable[PathState]) -> Self:
        name, first = next(iter(self.links.items()))
        chain = copy.copy(self)
        chain.links = self.links | {name: first.ahead(model, quantized, path)}
        return chain

    def rescalings(
        self, model: Denoiser, quantized: QuantizedDenoiser, state: PathState
    ) -> tuple[Mapping[str, Rescaling], Tensor]:
        return self._first.rescalings(model, quantized, state)

    def send_targets(
        self, model: Denoiser, quantized: QuantizedDenoiser, state: PathState, send: Callable[[str, Any], None]
    ) -> None:
        self._first.send_targets(model, quantized, state, send)

    def rescalings_received(
        self, received: Callable[[str], Any], quantized: QuantizedDenoiser, state: PathState
    ) -> tuple[Mapping[str, Rescaling], Tensor]:
        return self._first.rescalings_received(received, quantized, state)

    @property
    def _first(self) -> Correction[PathEvidence]:
        """The link that may rescale layers."""
        return next(iter(self.links.values()))

    def fit_step(self, evidence: PathEvidence, step: Step) -> StepCorrection:
        corrections: list[StepCorrection] = []
        remainder = evidence
        for link in self.links.values():
            corrections.append(link.fit_step(remainder, step))
            remainder = remainder.repaired(corrections[-1].repairs)
        repairs = tuple(repair for correction in corrections for repair in correction.repairs)
        whole = StepMeasurement.of(evidence.paired, repairs, step).correction(corrections[-1].sigma)
        held_out = [correction.report.r2_held_out for correction in corrections]
        r2_held_out = next((r2 for r2 in held_out if r2 is not None), None)
        # The residual that sigma' makes room for is that of the last link; on another table sigma' is computed from it.
        residual = corrections[-1].residual
        return replace(whole, residual=residual, report=replace(whole.report, r2_held_out=r2_held_out))


def _require_links(links: Mapping[str, Correction[PathEvidence]]) -> None:
    if not links:
        raise ValueError("expected at least one link, got none; add one with +correction@correction.links.NAME=NAME")
    fitted = {name for name, link in links.items() if _may_be_link(link)}
    if odd := sorted(links.keys() - fitted):
        raise ValueError(
            "expected links that are fitted along a path and no chains themselves, such as matched or readout, got "
            f"others in {', '.join(odd)}; leave it out with ~correction.links.{odd[0]}"
        )
    _require_agreement("path", {name: link.reads.value for name, link in links.items()})
    behind = {name: link for name, link in links.items() if not link.images_for_rescaling}
    _require_agreement("images", {name: link.images_with_m for name, link in behind.items()})
    first, *others = links
    if rescaling := [name for name in others if links[name].images_for_rescaling]:
        raise ValueError(
            f"expected no link but the first to rescale layers, got {rescaling[0]} behind {first}; leave it out with "
            f"~correction.links.{rescaling[0]}"
        )
    if setting := [name for name in list(links)[:-1] if not links[name].keeps_sigma]:
        raise ValueError(
            f"expected no link but the last to set sigma', got {setting[0]}; set "
            f"correction.links.{setting[0]}.{links[setting[0]].option_to_keep_sigma}"
        )


def _may_be_link(link: object) -> bool:
    return isinstance(link, Correction) and link.reads is not Reads.MOMENTS and not isinstance(link, Chain)


def _require_agreement(option: str, values: Mapping[str, object]) -> None:
    """Refuse links that are given different values of an option."""
    if len(set(values.values())) > 1:
        pairs = ", ".join(f"{name} {value}" for name, value in values.items())
        raise ValueError(
            f"expected links with one value of {option}, got {pairs}; set correction.links.NAME.{option} of each"
        )
