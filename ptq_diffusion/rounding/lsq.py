"""Scales of activations learned by gradients, block by block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from math import cos, pi, prod
from pathlib import Path

import torch
from torch import Tensor, nn

from ptq_diffusion.network.layer_settings import LayerSettings
from ptq_diffusion.network.step_settings import StepSettings
from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.numeric.seed import generator
from ptq_diffusion.quantizer import Static
from ptq_diffusion.rounding.block_errors import BlockErrors
from ptq_diffusion.rounding.calls import CallFiles
from ptq_diffusion.rounding.inputs import PathName
from ptq_diffusion.rounding.parts import Part, parts_of
from ptq_diffusion.rounding.reconstruction import Subject
from ptq_diffusion.rounding.scales import ActivationScales, Scales, is_learnable, with_scales
from ptq_diffusion.rounding.step_weights import StepWeights

Groups = Callable[[str], Sequence[int]]
"""From an operand to its group of steps at every step, or to one for all."""


class LSQ(ActivationScales):
    """The scales of a block together, so that its output changes least (Esser et al., ICLR 2020, arXiv 1902.08153).

    Once weights are rounded, as in BRECQ: the gradient of the error of a block's output, whose inputs are those of the
    quantized network, goes straight through rounding, and that of a scale is eq. 3 of the paper times 1 / sqrt(N Q_p),
    of N numbers of an image on a grid whose last integer is Q_p; what rounds to the last integer counts as within the
    grid. Zero points stay. The paper learns scales and weights of a whole network by its task; here a block has the
    error of its output in units of that of the searched scales, weights are fixed, and the parameter is v in
    s = s_0 e^v, by Adam along a cosine, so that a rate means the same of every scale and none changes its sign. Adam
    divides gradients by their own size, so that the factor decides little beside it.

    Args:
        weights: of the steps.
        iterations: steps of Adam.
        learning_rate: of Adam at the first iteration, of ln s; it falls to 0 along a cosine.
        calls: how many calls of a block, each of one step, an iteration takes rows of.
        rows: how many rows of each.

    Raises:
        ValueError: no iteration, one that would take no row, or a rate that is not positive.
    """

    learns = True

    def __init__(
        self, weights: StepWeights, iterations: int, learning_rate: float, calls: int = 4, rows: int = 4
    ) -> None:
        if iterations < 1 or not 0 < learning_rate < float("inf"):
            raise ValueError(
                f"expected at least 1 iteration and a positive learning_rate, got {iterations} and {learning_rate}; "
                "activation_scales=searched learns nothing"
            )
        if calls < 1 or rows < 1:
            raise ValueError(
                f"expected an iteration of at least 1 call and 1 row of it, got {calls} and {rows}; set calls and rows"
            )
        self.weights, self.iterations, self.learning_rate = weights, iterations, learning_rate
        self.calls, self.rows = calls, rows


class LearnedSettings(LayerSettings):
    """Settings of one operand whose scales are being learned, s = s_0 e^v, one v for each group of steps and each grid.

    Args:
        settings: with static grids.
        groups: the group of every step, or one for all; steps of one group have scales of their own at other bits.
    """

    def __init__(self, settings: LayerSettings, groups: Sequence[int]) -> None:
        super().__init__(**settings.fields())
        cases = [(bits, groups[i % len(groups)]) for i, bits in enumerate(settings.bits.tolist())]
        order = {case: place for place, case in enumerate(dict.fromkeys(cases))}
        self._places = [order[case] for case in cases]
        self.v = nn.Parameter(torch.zeros(len(order), settings.groups, device=settings.scale.device))
        self._sizes: dict[tuple[int, ...], Tensor] = {}

    def on_grid(self, met: Tensor, row: int, grid: Grid) -> Tensor:
        scale = self._scale(row)
        # The value is that of the scale; its gradient alone is smaller.
        scale = scale.detach() + self._factor(met, grid) * (scale - scale.detach())
        return self.form.fake_quantized(met, grid, scale, self.zero_point[row].reshape(-1))

    @torch.no_grad()
    def scales(self) -> Tensor:
        """The scales as they are now, of the shape of those that they were; float steps keep what nothing reads."""
        rows = [self._scale(row) if self.grid(row) else self.scale[row].reshape(-1) for row in range(len(self))]
        return torch.stack(rows).reshape(self.scale.shape)

    def _scale(self, row: int) -> Tensor:
        return self.scale[row].reshape(-1) * self.v[self._places[row]].exp()

    def _factor(self, x: Tensor, grid: Grid) -> Tensor:
        """1 / sqrt(N Q_p) of every grid, (G,)."""
        shape = tuple(x.shape)
        if shape[1:] not in self._sizes:
            assert isinstance(self.form, Static)
            places = self.form.granularity.spread(torch.arange(self.groups, device=x.device), shape)
            one = places.expand(shape)[0].reshape(prod(shape[1:]))
            self._sizes[shape[1:]] = torch.bincount(one, minlength=self.groups)
        return (self._sizes[shape[1:]] * grid.high).rsqrt()


class ScaleReconstruction(BlockErrors):
    """The scales of each block by its own calls, which lie in files while they are learned.

    Args:
        subject: the network, whose weights are rounded.
        rule: the method.
        groups: of steps, by operand.
        folder: for the files of one block.
    """

    def __init__(self, subject: Subject, rule: LSQ, groups: Groups, folder: Path) -> None:
        super().__init__(subject, rule.weights)
        self.rule, self.groups, self.folder = rule, groups, folder

    @property
    def path(self) -> PathName:
        return "quantized"

    @cached_property
    def parts(self) -> list[Part]:
        """The blocks of the network and the layers outside of them with static grids, in the order of a forward.

        An attention layer outside of blocks is one. Operands that are float, dynamic or log2 are in none.

        Raises:
            ValueError: there are no states, or no operand has a static grid.
        """
        attentions, blocks = self.quantized.attentions(), list(self.model.blocks())
        alone = [name for name in attentions if not any(f"{name}.".startswith(f"{block}.") for block in blocks)]
        operands = [f"{name}.{letter}" for name, attention in attentions.items() for letter in attention.settings()]
        settings = self.quantized.settings
        everything = parts_of([*blocks, *alone], [*self.layers_in_order(), *operands])
        members = [(part, tuple(name for name in part.layers if is_learnable(settings[name]))) for part in everything]
        parts = [Part(part.name, names) for part, names in members if names]
        if not parts:
            raise ValueError(
                "expected activations on static grids, whose scales are learned, got none: float, dynamic and log2 "
                "ones have no scale; set activation_scales=searched or quantizer@quantizer.activation=affine_per_tensor"
            )
        return parts

    def shapes(self, part: Part) -> dict[str, tuple[int, ...]]:
        """The shape of the scales of every operand of a part."""
        return {name: tuple(self.quantized.settings[name].scale.shape) for name in part.layers}

    def learned(self, part: Part) -> Scales:
        """The scales of a part; those of the parts before it are installed.

        They are those of the search where what was learned has no smaller error on all calls.
        """
        settings = self.quantized.settings
        learned = {name: LearnedSettings(settings[name], self.groups(name)) for name in part.layers}
        with CallFiles.within(self.folder) as calls:
            self.collect(part, calls)
            searched = self.error(part, calls)
            with self._computing(StepSettings({**settings, **learned})):
                self._descend(part, calls, learned, searched)
            scales = {name: one.scales() for name, one in learned.items()}
            with self._computing(with_scales(settings, scales)):
                is_better = self.error(part, calls) < searched
        return scales if is_better else {name: settings[name].scale for name in part.layers}

    def install(self, scales: Scales) -> None:
        """Let the quantized network compute with scales that were learned."""
        self.quantized = self.quantized.with_settings(with_scales(self.quantized.settings, scales))

    @torch.enable_grad()
    def _descend(self, part: Part, calls: CallFiles, learned: Mapping[str, LearnedSettings], searched: float) -> None:
        rule, draw = self.rule, generator("activation scales", part.name)
        optimizer = torch.optim.Adam([settings.v for settings in learned.values()], rule.learning_rate)
        draws = self.draws(calls, (rule.calls, rule.rows), draw)
        for iteration, drawn in zip(range(rule.iterations), draws, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = rule.learning_rate * (1 + cos(pi * iteration / rule.iterations)) / 2
            optimizer.zero_grad()
            self.add_gradient(part, drawn, searched)
            optimizer.step()

    @contextmanager
    def _computing(self, settings: StepSettings) -> Iterator[None]:
        """Within this context the quantized network computes with other settings."""
        before = self.quantized
        self.quantized = before.with_settings(settings)
        try:
            yield
        finally:
            self.quantized = before
