"""Rules of rescaled layers: what each is matched on, which steps share its gain; and the forward that matches all."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from torch import Tensor

from ptq_diffusion.correction.path_state import PathState
from ptq_diffusion.network import (
    Differences,
    InputGrid,
    QuantizedDenoiser,
    Rescaling,
    Simulated,
    regridding,
    watching,
)
from ptq_diffusion.network.gain import Comparison, Target
from ptq_diffusion.quantizer import NO_SHIFT, RangeSearch, Shift


class Order(ABC):
    """A rule for the output of a rescaled layer that later layers are matched on: rescaled, or as it was."""

    @abstractmethod
    def passed_on(self, y: Tensor, rescaled: Tensor) -> Tensor:
        """The output that later layers receive: y, the quantized one, or `rescaled`, both (B, ...)."""


class InSequence(Order):
    """Every layer is matched on outputs of rescaled earlier layers, as in sampling, and inherits no error of theirs."""

    def passed_on(self, y: Tensor, rescaled: Tensor) -> Tensor:  # noqa: ARG002
        return rescaled


class AtOnce(Order):
    """All layers are matched without rescaled ones before them: later ones correct an error of an earlier one again."""

    def passed_on(self, y: Tensor, rescaled: Tensor) -> Tensor:  # noqa: ARG002
        return y


class GainSteps(ABC):
    """A rule for which steps share the gain and the offset of a layer. Input grids are each step's own by every rule.

    A step's grid is chosen for what the layer meets there, so that rules differ in gains and offsets alone.

    Class attributes:
        looks_ahead: whether all steps are compared along float sampling before the first is fitted.
    """

    looks_ahead: ClassVar[bool] = False

    @abstractmethod
    def rescaling(self, layer: str, comparison: Comparison) -> Rescaling:
        """The rescaling of a layer at a step, of which its outputs are compared."""

    def informed(self, steps: Sequence[Mapping[str, Comparison]]) -> "GainSteps":  # noqa: ARG002
        """The rule that knows the comparisons of all steps, by layer; by default it has no use for them."""
        return self


class EachStep(GainSteps):
    """Every step has a gain and an offset of its own."""

    def rescaling(self, layer: str, comparison: Comparison) -> Rescaling:  # noqa: ARG002
        return comparison.rescaling()


class PooledSteps(GainSteps):
    """One gain and one offset for all steps, from moments over the images of all steps: a static correction of a layer.

    The moments are of float sampling, each step's behind layers that are rescaled by its own.
    """

    looks_ahead = True

    def rescaling(self, layer: str, comparison: Comparison) -> Rescaling:  # noqa: ARG002
        raise RuntimeError("expected pooled steps to be compared before one is fitted, none was; call ahead first")

    def informed(self, steps: Sequence[Mapping[str, Comparison]]) -> GainSteps:
        layers = dict.fromkeys(name for step in steps for name in step)
        rows = {name: [step[name] for step in steps if name in step] for name in layers}
        return SharedGains({name: type(row[0]).pooled(row).rescaling() for name, row in rows.items()})


@dataclass(frozen=True)
class SharedGains(GainSteps):
    """The gains and offsets that all steps have.

    Args:
        rescalings: by layer.
    """

    rescalings: Mapping[str, Rescaling]

    def rescaling(self, layer: str, comparison: Comparison) -> Rescaling:  # noqa: ARG002
        return self.rescalings[layer]


class LazyTargets(Mapping[str, Target]):
    """Targets by layer name, each looked up when it is read, perhaps received from another process then.

    Args:
        layers: their names.
        received: from a name to the target, which it may wait for.
    """

    def __init__(self, layers: Collection[str], received: Callable[[str], Target]) -> None:
        self._layers, self._received = layers, received

    def __getitem__(self, name: str) -> Target:
        return self._received(name)

    def __contains__(self, name: object) -> bool:
        return name in self._layers

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


IN_SEQUENCE, EACH_STEP = InSequence(), EachStep()


@dataclass(frozen=True)
class LayerRules:
    """The rules of rescaled layers but for that of gains, which are in their targets.

    Args:
        range_search: chooses the interval that the grid of a layer's input covers at a step; None leaves the grids.
        shift: chooses what is subtracted from the channels of a layer's input at a step before its grid.
        order: whether the layers behind see rescaled outputs.
        steps: which steps share a gain.
        differences: chooses the interval of the differences between the rows of guidance, which then have a grid of
            their own; None puts every row on one grid.
    """

    range_search: RangeSearch | None
    shift: Shift = NO_SHIFT
    order: Order = IN_SEQUENCE
    steps: GainSteps = EACH_STEP
    differences: RangeSearch | None = None

    def differences_of(self, state: PathState, quantized: QuantizedDenoiser) -> Differences | None:
        """The rule of differences at a state; None where the network is asked about one row for an image there."""
        if self.differences is None or quantized.rows_per_image(state.step) == 1:
            return None
        return Differences(self.differences, partial(quantized.combined, step=state.step), 2 * len(state.x_t))


def rescalings_towards(
    targets: Mapping[str, Target], quantized: QuantizedDenoiser, state: PathState, rules: LayerRules
) -> tuple[Mapping[str, Rescaling], Mapping[str, Comparison]]:
    """Rescalings of layers towards targets on these states, layer by layer in one forward; and the comparisons.

    The input of each is first given a grid of its own, if there is a range search. A target is asked for when the
    forward comes to its layer.
    """
    # Grids are chosen and layers matched on float tensors.
    quantized = quantized.computed_by(Simulated())
    layers = quantized.inner_layers()
    rescalings: dict[str, Rescaling] = {}
    grids: dict[str, InputGrid] = {}
    comparisons: dict[str, Comparison] = {}

    def match(name: str, output: Tensor) -> Tensor:
        comparison = targets[name].compared(output)
        if name in comparisons:
            require_once(name, comparisons[name].source.equals(comparison.source))
        comparisons[name] = comparison
        rescalings[name] = rules.steps.rescaling(name, comparison)
        return rules.order.passed_on(output, rescalings[name].of(output, layers[name].channels))

    with ExitStack() as stack:
        if rules.range_search:
            differences = rules.differences_of(state, quantized)
            grids_of = regridding(layers, rules.range_search, state.step.i, grids, rules.shift, differences)
            stack.enter_context(grids_of)
        stack.enter_context(watching(quantized.network, targets, match))
        quantized.predict(*state)
    whole = {name: replace(rescaling, input_grid=grids.get(name)) for name, rescaling in rescalings.items()}
    return whole, comparisons


def require_once(name: str, same: bool) -> None:
    """Refuse a layer that a forward computes several times, unless each time with the same result, as in a DiT."""
    if not same:
        raise ValueError(
            f"expected a network that computes every layer once, this one computes {name} several times, which one "
            "scale does not serve; choose a correction without rescaled layers, such as correction=matched"
        )
