"""Peak memory of the stages of an experiment, from the configuration alone."""

import math
import resource
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from ptq_diffusion.bitwidth.cost import other_bits
from ptq_diffusion.command.plan.activations import forward_bytes
from ptq_diffusion.command.plan.bits import dearest
from ptq_diffusion.command.plan.bytes import bytes_of_features, bytes_of_observations, size
from ptq_diffusion.command.plan.case import Case
from ptq_diffusion.correction import Auto
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.runtime import BY_BLOCK
from ptq_diffusion.metric import FeatureExtractor
from ptq_diffusion.numeric.grid import FLOAT_BITS
from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.calibration.choose_states import ChooseStates
from ptq_diffusion.stage.drawing.drift import MeasureDrift
from ptq_diffusion.stage.drawing.layers import AT_ONCE, MeasureLayers
from ptq_diffusion.stage.drawing.variants import VARIANTS
from ptq_diffusion.stage.evaluate import Evaluate
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.float_path import FloatPath
from ptq_diffusion.stage.noise import Noise
from ptq_diffusion.stage.quantize import Quantize
from ptq_diffusion.stage.rounding.learn_scales import LearnScales
from ptq_diffusion.stage.samples_corrected import CorrectedSamples
from ptq_diffusion.stage.samples_full_precision import FullPrecisionSamples
from ptq_diffusion.stage.samples_quantized import QuantizedSamples
from ptq_diffusion.stage.sensitivity import TOGETHER, MeasureSensitivity
from ptq_diffusion.stage.step_signal import MeasureStepSignal
from ptq_diffusion.stage.trajectories import Trajectories

FLOAT = 4
"""Bytes of a number of a network."""
COPIES = 2
"""Float copies that packed integers are unpacked to when they are first used: centred integers, and their values."""
OBSERVED = 5
"""Copies of observations that are held at one time: as they are counted, stacked, written, read and joined."""
PACKING = 41
"""Bytes of a number of a weight while it is packed: the weight, integers in 32 and in 64 bits, words, bytes."""
BUILDERS = (MeasureStepSignal.name, MeasureSensitivity.name)
"""Stages that build quantized networks of their own."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a stage holds at one time.

    Args:
        networks: those that the process has loaded by then, which it keeps.
        activations: of a forward, or of a forward and its gradients.
        data: states, observations, images and features.
    """

    networks: int = 0
    activations: int = 0
    data: int = 0

    @property
    def device(self) -> int:
        """Bytes on the device of the networks."""
        return self.networks + self.activations


class Footprint:
    """The memory of the stages of one experiment.

    Args:
        case: its configuration.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self._model = case.shop.model(case.cfg)

    def of(self, stage: str, case: Case) -> Memory:
        """The memory of a stage; of one that builds no network next to nothing."""
        rule = self._rules.get(stage)
        return Memory() if rule is None else rule(case)

    @cached_property
    def _rules(self) -> Mapping[str, Callable[[Case], Memory]]:
        return {
            Trajectories.name: lambda case: self._recorded(case, len(case.table)),
            ChooseStates.name: self._features,
            Calibrate.name: self._observed,
            FloatPath.name: lambda case: self._recorded(case, len(case.fit_table)),
            MeasureStepSignal.name: self._offers,
            MeasureSensitivity.name: self._backward,
            LearnScales.name: lambda _: Memory(self.both, self.quantized_activations),
            Quantize.name: lambda _: Memory(self.float_network + self._packed + self._others, 0, self._largest),
            Noise.name: lambda _: Memory(self.both, self.quantized_activations),
            Fit.name: self._fit,
            FullPrecisionSamples.name: lambda _: Memory(self.float_network + self.decoder, self.float_activations),
            QuantizedSamples.name: lambda _: Memory(self.both + self.decoder, self.quantized_activations),
            CorrectedSamples.name: lambda _: Memory(self.both + self.decoder, self.quantized_activations),
            MeasureDrift.name: lambda _: Memory(self.both + self.decoder, self.quantized_activations),
            MeasureLayers.name: self._compared,
            Evaluate.name: self._judged,
        }

    @cached_property
    def float_network(self) -> int:
        """Bytes of the float network; of one that is lent by block all outside of blocks, and the largest block."""
        network = self._model.network
        tensors = chain(network.named_parameters(), network.named_buffers())
        return self._held((name, size([tensor])) for name, tensor in tensors)

    @cached_property
    def quantized_network(self) -> int:
        """Bytes of the quantized network when it has been asked: integers, what they are unpacked to, all others."""
        return self._held(self._packed_bytes) + self._unpacked + self._others

    def _held(self, sizes: Iterable[tuple[str, int]]) -> int:
        """Bytes that are held of tensors or layers by name: of blocks that are lent, those of the largest alone."""
        lent = self._model.blocks() if self._case.shop.runtime.offload == BY_BLOCK else ()
        blocks, outside = dict.fromkeys(lent, 0), 0
        for name, count in sizes:
            block = next((block for block in blocks if name.startswith(f"{block}.")), None)
            if block is None:
                outside += count
            else:
                blocks[block] += count
        return outside + max(blocks.values(), default=0)

    @property
    def both(self) -> int:
        """Bytes of the float and of the quantized network, which one process keeps both."""
        return self.float_network + self.quantized_network

    @cached_property
    def decoder(self) -> int:
        """Bytes of the decoder."""
        return size(self._case.shop.decoder(self._case.cfg).parameters())

    @cached_property
    def float_activations(self) -> int:
        """Bytes of a float forward of a micro-batch."""
        return forward_bytes(self._model, self._case.most_rows)

    @cached_property
    def quantized_activations(self) -> int:
        """Bytes of a quantized forward of a micro-batch."""
        return forward_bytes(self._model, self._case.most_rows, quantized=True)

    @cached_property
    def _packed_bytes(self) -> Sequence[tuple[str, int]]:
        """Bytes of the integers of every layer, by its name."""
        plan, weighted = dearest(self._case), [site for site in self._model.sites() if site.weighted]
        return [
            (site.name, math.prod(site.weight_shape) * sum(plan.weight_copies(site.name)) // 8) for site in weighted
        ]

    @property
    def _packed(self) -> int:
        return sum(count for _, count in self._packed_bytes)

    @cached_property
    def _unpacked(self) -> int:
        plan = dearest(self._case)
        copies = {
            site: [bits for bits in plan.weight_copies(site.name) if bits != FLOAT_BITS]
            for site in self._model.sites()
            if site.weighted
        }
        return self._held(
            (site.name, COPIES * FLOAT * len(bits) * math.prod(site.weight_shape)) for site, bits in copies.items()
        )

    @cached_property
    def _largest(self) -> int:
        """Bytes of the largest weight while it is packed."""
        return PACKING * max(math.prod(site.weight_shape) for site in self._model.sites() if site.weighted)

    @cached_property
    def _others(self) -> int:
        return other_bits(self._model.architecture()) // 8

    def _recorded(self, case: Case, steps: int) -> Memory:
        """A float forward, and a micro-batch's states of all steps, twice while they are stacked."""
        return Memory(self.float_network, self.float_activations, 2 * steps * case.cfg.micro_batch * case.state_bytes)

    def _features(self, case: Case) -> Memory:
        """A float forward of a set that reads features; any other set asks no network."""
        reads = construct(case.cfg.calibration_set).feature_images > 0
        return Memory(self.float_network, self.float_activations) if reads else Memory()

    def _observed(self, case: Case) -> Memory:
        states = len(case.table) * case.cfg.micro_batch * case.state_bytes
        return Memory(self.float_network, self.float_activations, states + OBSERVED * bytes_of_observations(case))

    def _offers(self, case: Case) -> Memory:
        offers = len(construct(case.cfg.bitwidth).offered)
        return Memory(self.float_network + offers * self.quantized_network, self.quantized_activations)

    def _backward(self, case: Case) -> Memory:
        networks = self.float_network + len(construct(case.cfg.bitwidth).weights) * self.quantized_network
        rows = min(TOGETHER, case.cfg.sensitivity.images) * case.most_rows // case.cfg.micro_batch
        return Memory(networks, forward_bytes(self._model, rows, gradients=True))

    def _compared(self, case: Case) -> Memory:
        """The outputs of all layers, which gradients need too."""
        rows = min(AT_ONCE, case.cfg.micro_batch) * case.most_rows // case.cfg.micro_batch
        return Memory(self.both + self.decoder, forward_bytes(self._model, rows, gradients=True))

    def _fit(self, case: Case) -> Memory:
        correction = construct(case.cfg.correction)
        if isinstance(correction, Auto):
            images = case.padded(correction.images) * (1 + len(correction.candidates))
            return Memory(self.both + self.decoder, self.quantized_activations, images * case.image_bytes)
        together = min(correction.images_for_rescaling, case.cfg.noise.images)
        rows = max(case.most_rows, together * case.most_rows // case.cfg.micro_batch)
        quantized = forward_bytes(self._model, rows, quantized=True)
        if not correction.keeps_outputs:
            return Memory(self.both, quantized)
        # The outputs of all layers, which gradients need too, of three of four images that layers are rescaled on.
        fitted = (together - together // 4) * case.most_rows // case.cfg.micro_batch
        return Memory(self.both, quantized + forward_bytes(self._model, fitted, gradients=True))

    def _judged(self, case: Case) -> Memory:
        """A batch of images of all variants, and the features of all, once more where moments of them are taken."""
        batch = len(VARIANTS) * FeatureExtractor.batch * case.image_bytes
        return Memory(self.both + self.decoder, 0, batch + 2 * bytes_of_features(case))


def resident() -> int:
    """The most bytes that this process has held so far, which a run that has imported the same holds too."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
