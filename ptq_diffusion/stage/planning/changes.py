"""Stage: how fewer bits in one layer at one step change the final sample, correction in force."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ptq_diffusion.bitwidth.changes import Changes
from ptq_diffusion.bitwidth.under_budget import UnderBudget
from ptq_diffusion.engine.chunks import Chunk, ChunkWork, read_chunks, run_chunks
from ptq_diffusion.engine.conditions import ConditionSource
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser
from ptq_diffusion.model.plan import LayerBits
from ptq_diffusion.network import QuantizedDenoiser, QuantizedLayer, quantize
from ptq_diffusion.network.damage import LayerChange, step_adjoint
from ptq_diffusion.network.rescaling import BINS
from ptq_diffusion.numeric.seed import SampleNoise
from ptq_diffusion.numeric.spectrum import Whitening
from ptq_diffusion.quantizer import Quantizer
from ptq_diffusion.rounding.artefact import load_integers
from ptq_diffusion.sampler import State, Table
from ptq_diffusion.stage.calibrate import Calibrate, read_observations
from ptq_diffusion.stage.fit_setting import with_own_guidance
from ptq_diffusion.stage.float_path import FloatOutputs, FloatPath, noise_chunks
from ptq_diffusion.stage.planning.offer import with_offer
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.rounding.offered import RoundOffers

CHUNKS = "chunks"
"""The folder of the artefact."""
TOGETHER = 16
"""Samples that go backwards together: a backward pass holds the inputs and outputs of all layers."""


class BackwardSampling(ChunkWork):
    """Sampling backwards from a random direction of x_0, the change by every layer taken at every step.

    It takes a forward and a backward pass a step, and the layers alone once for each bitwidth.

    Args:
        model: the float model.
        networks: for every bitwidth of weights a network whose inner layers have it.
        names: the names of the layers that are measured.
        activations: the bitwidths of inputs.
        input_quantizer: from a bitwidth to a fresh quantizer of inputs.
        table: the sampler's table.
        outputs: the outputs of the float network.
        parents: the chunk of the float path that each chunk lies in, by the index of its first sample.
        conditions: of the samples.
        whitening: of x_0, in whose distance changes are measured; the squared change by pixel without one.
    """

    def __init__(
        self,
        model: Denoiser,
        networks: Sequence[QuantizedDenoiser],
        names: Sequence[str],
        activations: Sequence[int],
        input_quantizer: Callable[[int], Quantizer],
        table: Table,
        outputs: FloatOutputs,
        parents: Mapping[int, Chunk],
        conditions: ConditionSource,
        whitening: Whitening | None,
    ) -> None:
        super().__init__()
        self.model, self.networks = model, nn.ModuleList(networks)
        self.names, self.activations = list(names), list(activations)
        self.input_quantizer = input_quantizer
        self.table, self.outputs, self.parents, self.conditions = table, outputs, parents, conditions
        self.whitening = whitening

    def forward(self, chunk: Chunk, device: torch.device) -> dict[str, Tensor]:
        """<g, e> of every layer, step, bitwidth and sample: `weight` (L, S, W, B) and `activation` (L, S, A, B)."""
        shape = (len(self.names), len(self.table))
        # On the device, as a copy of each number to the host would wait for it.
        weight = torch.zeros(*shape, len(self.networks), chunk.count, dtype=torch.float64, device=device)
        activation = torch.zeros(*shape, len(self.activations), chunk.count, dtype=torch.float64, device=device)
        states = self.outputs.states(self.parents[chunk.first], chunk, self.table, self.model.shape, device)
        condition = chunk.condition(self.conditions, device)
        rows = range(chunk.first, chunk.first + chunk.count)
        skips = {site.name: site.skip for site in self.model.sites()}
        direction = SampleNoise(chunk.seed, rows, self.model.shape, "direction of x_0").draw(device)
        # E <W^(-1/2) v, dx_0>^2 = |W^(-1/2) dx_0|^2
        adjoint = State(direction if self.whitening is None else self.whitening(direction), ())
        for step in reversed(self.table):
            backward = step_adjoint(self.model, self.names, states[step.i], step, adjoint, condition)
            adjoint = backward.state
            for place, name in enumerate(self.names):
                layers = [self._layer(network, name) for network in self.networks]
                float_weight = self.model.network.get_parameter(f"{name}.weight")
                of_layer = backward.calls[name], backward.gradients[name]
                change = LayerChange(layers[0], float_weight, *of_layer, chunk.count)
                for row, layer in zip(weight[place, step.i], layers, strict=True):
                    _put(row, change.of_weight(layer.operands(step.i)[0]))
                for row, bits in zip(activation[place, step.i], self.activations, strict=True):
                    _put(row, self._of_input(change, skips[name], bits))
        return {"weight": weight.cpu(), "activation": activation.cpu()}

    def _of_input(self, change: LayerChange, skip: int | None, bits: int) -> Tensor:
        return change.of_input(self.input_quantizer(bits).of_input(change.layer.channels, skip))

    @staticmethod
    def _layer(network: nn.Module, name: str) -> QuantizedLayer:
        assert isinstance(network, QuantizedDenoiser)
        return network.layer(name)


def _put(row: Tensor, change: Tensor) -> None:
    """A change of each sample, or one of all together in the place of the first sample's."""
    row[: len(change)] = change


class MeasureChanges(ModelStage):
    """`chunks`: the first-order change of every sample by each layer, step and bitwidth, along one direction of x_0.

    The change is relative to the variance that float images have at its frequency, or by pixel: `sensitivity.distance`.
    Weights have the integers of `RoundOffers` where a policy chooses their bits and a rounding is set, or nearest.
    """

    name = "changes"
    version = 1
    needs = (Calibrate, FloatPath, EncodePrompts, RoundOffers)
    uses = ("model", "condition", "sampler", "quantizer", "bitwidth", "noise", "sensitivity", "micro_batch")
    unread = ("quantizer.embedding", "sensitivity.steps", "sensitivity.first_step")

    @classmethod
    def made_of(cls, cfg: DictConfig) -> DictConfig:
        """With the offer of the policy in its place and no guidance of its own: `with_offer`, `with_own_guidance`."""
        return with_offer(with_own_guidance(cfg))

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        chunks_to_do = [part for part, _ in sensitivity_chunks(cfg)]
        run_chunks(partial(self.work, cfg, inputs), chunks_to_do, out / CHUNKS, shop, self.title)

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop) -> BackwardSampling:
        """The work of every device."""
        model, host_model, policy = shop.guided(cfg, inputs), shop.host.guided(cfg, inputs), offering_policy(cfg)
        architecture, table = model.architecture(), shop.table(cfg, model)
        observations = read_observations(cfg, inputs[Calibrate.name], shop.host)
        make_weight = construct(cfg.quantizer.weight)
        plans = [policy.uniform(architecture, LayerBits(bits, policy.activations[-1])) for bits in policy.weights]
        rank = construct(cfg.quantizer.low_rank).rank
        integers = None
        if RoundOffers.name in inputs:
            integers = load_integers(inputs[RoundOffers.name], host_model.fingerprint(), plans[0].fingerprint())
        networks = [quantize(host_model, plan, observations, make_weight, integers, rank) for plan in plans]
        names = [site.name for site in policy.roles.free(architecture.sites)]
        node = cfg.quantizer.activation
        # One batch at one step fills no more bins.
        input_quantizer = construct(node, **({"bins": BINS} if "bins" in node else {}))
        outputs, conditions = FloatOutputs(inputs[FloatPath.name]), shop.conditions(cfg, model, inputs)
        parts = sensitivity_chunks(cfg)
        parents = {part.first: parent for part, parent in parts}
        whitening = None
        if cfg.sensitivity.distance == "mahalanobis":
            states = (outputs.states(parent, part, table, model.shape, torch.device("cpu")) for part, parent in parts)
            whitening = Whitening.of(torch.cat([path[-1] for path in states]))
        offered = names, policy.activations, input_quantizer
        return BackwardSampling(model, networks, *offered, table, outputs, parents, conditions, whitening)


def read_changes(folder: Path, operand: str) -> Changes:
    """The moments over all samples of an artefact of `MeasureChanges`, of `weight` or `activation` bits."""
    return reduce(Changes.merge, (Changes.of(part[operand]) for part in read_chunks(folder / CHUNKS)))


def offering_policy(cfg: DictConfig) -> UnderBudget:
    """The policy whose offers are measured."""
    policy = construct(cfg.bitwidth)
    assert isinstance(policy, UnderBudget)
    return policy


def sensitivity_chunks(cfg: DictConfig) -> list[tuple[Chunk, Chunk]]:
    """The samples that go backwards together, each with the chunk of the float path that holds them.

    Raises:
        ValueError: see `require_sensitivity`.
    """
    require_sensitivity(cfg)
    images = cfg.sensitivity.images
    pairs = []
    for parent in noise_chunks(cfg):
        for first in range(parent.first, min(parent.first + parent.count, images), TOGETHER):
            count = min(TOGETHER, parent.first + parent.count - first, images - first)
            pairs.append((replace(parent, first=first, size=count, count=count), parent))
    return pairs


def require_sensitivity(cfg: DictConfig) -> None:
    """Refuse images that sensitivities cannot be measured on.

    Raises:
        ValueError: they are more than the float path has, or one alone, of which no variance is known.
    """
    images = cfg.sensitivity.images
    if images == 1 and cfg.sensitivity.distance == "mahalanobis":
        raise ValueError(
            "expected sensitivity.images of at least 2, whose variance sensitivity.distance=mahalanobis reads, got 1; "
            "raise it or set sensitivity.distance=euclidean"
        )
    if images > cfg.noise.images:
        raise ValueError(
            f"expected sensitivity.images of at most noise.images, {cfg.noise.images}, whose float path it shares, got "
            f"{images}; raise noise.images"
        )
