"""The contract of a correction: what it needs, what it is fitted on, and how one step of it is fitted."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Generic, Literal, Self, TypeVar

from torch import Tensor

from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.correction.evidence import MomentEvidence, PathEvidence
from ptq_diffusion.correction.fitted import FittedCorrection, StepCorrection, absorbing
from ptq_diffusion.correction.path_state import PathState
from ptq_diffusion.model import Denoiser
from ptq_diffusion.network import QuantizedDenoiser, Rescaling
from ptq_diffusion.quantizer import NO_SHIFT, Form, RangeSearch, Shift
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table

Evidence = TypeVar("Evidence", MomentEvidence, PathEvidence)
"""Evidence of one step: moments, or images along a path."""
PathName = Literal["float", "corrected"]


class Reads(Enum):
    """Evidence that a correction is fitted on."""

    MOMENTS = "moments"
    """Moments of the noise along float sampling, `MomentEvidence`."""
    FLOAT_PATH = "float"
    """Images at the states of float sampling, `PathEvidence`."""
    CORRECTED_PATH = "corrected"
    """Images at the states that the quantized network reaches with the steps before corrected, `PathEvidence`."""


class Requirements:
    """Requirements of a correction, or of a choice among several, that are checked before anything is measured."""

    def check(self, steps: Table) -> None:  # noqa: ARG002
        """Refuse a table that this method cannot correct; by default none is refused.

        Raises:
            ValueError: the table's sampler lacks what the method needs.
        """

    def check_single_evaluation(self) -> None:
        """Refuse what evaluates the network once a step, such as a stock pipeline; by default nothing is refused.

        Raises:
            ValueError: a step of the method evaluates the network more than once.
        """

    def check_rows_apart(self) -> None:
        """Refuse steps at which the network may be asked without the pair of rows of guidance; by default none are.

        Raises:
            ValueError: the method has inputs of one row that depend on the other.
        """

    def check_borders(self) -> None:
        """Refuse layers with padding in a place that knows one bias for a channel; by default none are refused.

        Raises:
            ValueError: the method gives such layers another bias at the border.
        """

    def check_images(self, images: int, channels: int) -> None:  # noqa: ARG002
        """Refuse too few images to be fitted on; by default any number will do.

        Raises:
            ValueError: the method needs more images with so many channels.
        """

    def check_inputs(self, forms: Collection[Form]) -> None:  # noqa: ARG002
        """Refuse layers' inputs that the method cannot act on; by default none are refused.

        Args:
            forms: the arithmetic of the quantizers of all layers' inputs.

        Raises:
            ValueError: the method changes a form that none of them has.
        """

    def check_carried(self, steps: Table) -> None:  # noqa: ARG002
        """Refuse coefficients that cannot be interpolated from this table onto another; by default none are refused.

        Raises:
            ValueError: the method makes a table or a noise scale that belongs to this table alone.
        """

    def check_other_guidance(self) -> None:
        """Refuse to be fitted at another scale of guidance than that of the images; by default it is not refused.

        Raises:
            ValueError: the method aims at images of one scale.
        """

    def additions(self, steps: Table, shape: tuple[int, ...], patch_size: int) -> Additions:  # noqa: ARG002
        """The operations that the method adds at most; a step that is better off without is left as it is.

        Args:
            steps: the table to sample with.
            shape: of a state, (C, H, W).
            patch_size: of the output layer, p.

        Raises:
            ValueError: they are not known before it is fitted, as by default.
        """
        raise ValueError(
            "expected a correction whose operations are known before it is fitted, to count them within the saving, "
            f"got {type(self).__name__}; choose another, such as correction=rescaled_matched, or set "
            "bitwidth.count_correction=false"
        )


class Correction(Requirements, ABC, Generic[Evidence]):
    """A method of repair, fitted one step at a time to the evidence that it reads.

    Attributes:
        reads: the evidence.
        images_with_m: along a path, how many images, the first ones, the float network is asked about; None for all.
        images_for_rescaling: how many images, the first ones, `rescalings` is given at once; 0 where it changes no
            layer.
        shift: chooses what is subtracted from the channels of a layer's input where it changes layers.
        differences: chooses the grid of differences between the rows of guidance where it has one; None for none.
        looks_ahead: whether `ahead` asks both networks at all steps of float sampling.
        keeps_outputs: whether the float outputs of all layers for these images are kept at once.
        keeps_sigma: whether sigma' is the table's sigma.
        option_to_keep_sigma: how it is told to keep that.
        maps_output: whether it maps the output, in which guidance amplifies the noise; rescaled layers do not.
        is_divisible: whether `rescalings` is `send_targets` followed by `rescalings_received`, so that one process can
            run the first while another runs the second on the values that it receives.
    """

    reads: Reads
    images_with_m: int | None = None
    images_for_rescaling: int = 0
    shift: Shift = NO_SHIFT
    differences: RangeSearch | None = None
    looks_ahead: bool = False
    keeps_outputs: bool = False
    keeps_sigma: bool = True
    option_to_keep_sigma: str = "variance=original"
    maps_output: bool = True
    is_divisible: bool = False

    @abstractmethod
    def fit_step(self, evidence: Evidence, step: Step) -> StepCorrection:
        """The correction of one step.

        Args:
            evidence: of the kind that `reads` says.
            step: the sampler's row.

        Raises:
            ValueError: the evidence does not determine the correction.
        """

    def assembled(self, corrections: Sequence[StepCorrection], steps: Table) -> FittedCorrection:
        """The corrections of all steps as one, by default on the sampler's own table.

        Raises:
            ValueError: the method makes another table, which these steps do not allow.
        """
        return FittedCorrection(steps, absorbing(corrections, steps))

    def ahead(self, model: Denoiser, quantized: QuantizedDenoiser, path: Iterable[PathState]) -> Self:  # noqa: ARG002
        """The correction after a pass over all steps of float sampling, before any is fitted; by default unchanged.

        Args:
            model: the float model.
            quantized: the quantized one.
            path: states of the first `images_for_rescaling` images at every step.
        """
        return self

    def rescalings(
        self,
        model: Denoiser,
        quantized: QuantizedDenoiser,  # noqa: ARG002
        state: PathState,
    ) -> tuple[Mapping[str, Rescaling], Tensor]:
        """Scales that layers compute with at a step, chosen before the step is fitted; and m on x_t.

        By default no layer is rescaled.

        Args:
            model: the float model.
            quantized: the quantized one.
            state: on the path, of the first `images_for_rescaling` images.
        """
        return {}, model.predict(*state).m

    def send_targets(
        self,
        model: Denoiser,
        quantized: QuantizedDenoiser,
        state: PathState,
        send: Callable[[str, Any], None],
    ) -> None:
        """Send all that `rescalings_received` reads, each value as soon as it is known; none needs rescaled layers.

        Args:
            model: as `rescalings` has it, and so are those behind it.
            quantized: the quantized network.
            state: on the path.
            send: takes a name and a value, whose tensors are on the CPU.
        """
        raise NotImplementedError(f"expected a correction whose rescalings have halves, got {type(self).__name__}")

    def rescalings_received(
        self,
        received: Callable[[str], Any],
        quantized: QuantizedDenoiser,
        state: PathState,
    ) -> tuple[Mapping[str, Rescaling], Tensor]:
        """The `rescalings`, from the values that `send_targets` sends on the same states.

        Args:
            received: from a name to its value.
            quantized: the quantized network.
            state: that which `send_targets` was given.
        """
        raise NotImplementedError(f"expected a correction whose rescalings have halves, got {type(self).__name__}")

    def residual_scale(self, k: float) -> float:  # noqa: ARG002
        """The factor of D - k m - mu where the report's R^2 is taken; 1 as PTQD splits the noise."""
        return 1.0


class JointRequirements(Requirements, ABC):
    """Requirements of several corrections, each of which is checked."""

    @abstractmethod
    def _check_all(self, check: Callable[[Correction[Any]], None]) -> None:
        """Check every correction; the error names those that refuse."""

    def check(self, steps: Table) -> None:
        self._check_all(lambda one: one.check(steps))

    def check_single_evaluation(self) -> None:
        self._check_all(lambda one: one.check_single_evaluation())

    def check_rows_apart(self) -> None:
        self._check_all(lambda one: one.check_rows_apart())

    def check_borders(self) -> None:
        self._check_all(lambda one: one.check_borders())

    def check_images(self, images: int, channels: int) -> None:
        self._check_all(lambda one: one.check_images(images, channels))

    def check_inputs(self, forms: Collection[Form]) -> None:
        self._check_all(lambda one: one.check_inputs(forms))

    def check_carried(self, steps: Table) -> None:
        self._check_all(lambda one: one.check_carried(steps))

    def check_other_guidance(self) -> None:
        self._check_all(lambda one: one.check_other_guidance())


def along(path: PathName, images: int | None) -> tuple[Reads, int | None]:
    """The attributes `reads` and `images_with_m` of a correction along a path, from its options `path` and `images`.

    Raises:
        ValueError: there is no such path, or the number of images is below 2 or has no meaning along it.
    """
    if path not in ("float", "corrected"):
        raise ValueError(f"expected path to be float or corrected, got {path!r}")
    if path == "float" and images is not None:
        raise ValueError(
            f"expected images with path=corrected only, for along float sampling m is known of all, got {images}; "
            "set correction.images=null"
        )
    if images is not None and images < 2:
        raise ValueError(
            f"expected at least 2 images to ask about, one for each half, got {images}; raise correction.images"
        )
    return Reads(path), images
