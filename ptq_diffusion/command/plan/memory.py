"""Peak memory of the stages of an experiment, from the configuration alone."""

import math
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from ptq_diffusion.command.plan.activations import forward_bytes
from ptq_diffusion.command.plan.bits import dearest
from ptq_diffusion.command.plan.bytes import bytes_of_features, bytes_of_observations, size
from ptq_diffusion.command.plan.case import Case
from ptq_diffusion.correction import Auto
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.runtime import BY_BLOCK
from ptq_diffusion.metric import FeatureExtractor
from ptq_diffusion.model.text.files import text_block, text_sizes
from ptq_diffusion.network.embedding import embeddings
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
from ptq_diffusion.stage.planning.changes import TOGETHER, MeasureChanges
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.quantize import Quantize
from ptq_diffusion.stage.rounding.learn_scales import LearnScales
from ptq_diffusion.stage.samples_corrected import CorrectedSamples
from ptq_diffusion.stage.samples_full_precision import FullPrecisionSamples
from ptq_diffusion.stage.samples_quantized import QuantizedSamples
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


@dataclass(frozen=True)
class Held:
    """Bytes of a network's tensors.

    Args:
        whole: of all of them.
        kept: of those that stay on the device: all of a network that is not lent by block.
        lent: of the largest block that is copied to the device for its own forward; 0 of one that is not lent.
    """

    whole: int
    kept: int
    lent: int


def together(*networks: Held) -> int:
    """Bytes on the device of networks that are asked in turn: of blocks that are lent there is one at a time."""
    return sum(network.kept for network in networks) + max(network.lent for network in networks)


class Footprint:
    """The memory of the stages of one experiment.

    Args:
        case: its configuration.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self._model = case.shop.model(case.cfg)
        self._followed: dict[tuple[int, bool, bool], int] = {}

    def of(self, stage: str, case: Case) -> Memory:
        """The memory of a stage; of one that builds no network next to nothing."""
        rule = self._rules.get(stage)
        return Memory() if rule is None else rule(case)

    @cached_property
    def _rules(self) -> Mapping[str, Callable[[Case], Memory]]:
        return {
            EncodePrompts.name: lambda _: Memory(together(self.text_encoders)),
            Trajectories.name: lambda case: self._recorded(case, len(case.table)),
            ChooseStates.name: self._features,
            Calibrate.name: self._observed,
            FloatPath.name: lambda case: self._recorded(case, len(case.fit_table)),
            MeasureStepSignal.name: lambda _: self._offer(),
            MeasureChanges.name: self._backward,
            LearnScales.name: lambda _: Memory(self.both, self.quantized_activations),
            Quantize.name: lambda _: Memory(self.floating + self._stored, 0, self._largest),
            Noise.name: lambda _: Memory(self.both, self.quantized_activations),
            Fit.name: self._fit,
            FullPrecisionSamples.name: lambda _: Memory(self.floating + self.decoder, self.float_activations),
            QuantizedSamples.name: lambda _: Memory(self.both + self.decoder, self.quantized_activations),
            CorrectedSamples.name: lambda _: Memory(self.both + self.decoder, self.quantized_activations),
            MeasureDrift.name: lambda _: Memory(self.both + self.decoder, self.quantized_activations),
            MeasureLayers.name: self._compared,
            Evaluate.name: self._judged,
        }

    @cached_property
    def float_network(self) -> Held:
        """Bytes of the float network."""
        network = self._model.network
        tensors = chain(network.named_parameters(), network.named_buffers())
        return self._held(((name, size([tensor])) for name, tensor in tensors), self._block_of)

    @cached_property
    def quantized_network(self) -> Held:
        """Bytes of the quantized network when it has been asked: integers, what they are unpacked to, all others."""
        return self._held(chain(self._packed, self._unpacked, self._others), self._block_of)

    @cached_property
    def text_encoders(self) -> Held:
        """Bytes of the text encoders in float32; those of a forward of some prompts are not counted."""
        block_of = text_block if self._lends else lambda _: None
        return self._held(text_sizes(self._case.cfg.model.path).items(), block_of)

    def _held(self, sizes: Iterable[tuple[str, int]], block_of: Callable[[str], str | None]) -> Held:
        """Bytes of tensors or layers by name, of which some lie in blocks that are lent."""
        blocks = Counter[str | None]()
        for name, count in sizes:
            blocks[block_of(name)] += count
        whole, outside = blocks.total(), blocks.pop(None, 0)
        return Held(whole, outside, max(blocks.values(), default=0))

    @cached_property
    def _lent_blocks(self) -> Sequence[str]:
        return list(self._model.blocks()) if self._lends else []

    @property
    def _lends(self) -> bool:
        return self._case.shop.runtime.offload == BY_BLOCK

    def _block_of(self, name: str) -> str | None:
        """The block that is lent and holds a tensor or a layer, if any."""
        return next((block for block in self._lent_blocks if name.startswith(f"{block}.")), None)

    @property
    def floating(self) -> int:
        """Bytes of the float network on its device."""
        return together(self.float_network)

    @property
    def both(self) -> int:
        """Bytes of the float and of the quantized network, which one process keeps both."""
        return together(self.float_network, self.quantized_network)

    @cached_property
    def decoder(self) -> int:
        """Bytes of the decoder."""
        return size(self._case.shop.decoder(self._case.cfg).parameters())

    @property
    def float_activations(self) -> int:
        """Bytes of a float forward of a micro-batch."""
        return self._activations(self._case.most_rows)

    @property
    def quantized_activations(self) -> int:
        """Bytes of a quantized forward of a micro-batch."""
        return self._activations(self._case.most_rows, quantized=True)

    def _activations(self, rows: int, quantized: bool = False, gradients: bool = False) -> int:
        """Bytes of a forward, which is followed once: each candidate of a choice asks for the same."""
        asked = (rows, quantized, gradients)
        if asked not in self._followed:
            self._followed[asked] = forward_bytes(self._model, *asked)
        return self._followed[asked]

    @cached_property
    def _copies(self) -> Mapping[str, tuple[int, Sequence[int]]]:
        """How many numbers a weight of a layer or a table of embeddings in integers has, and the bits of its copies."""
        plan, bits = dearest(self._case), self._case.outside_plan.embedding_bits
        weighted = [site for site in self._model.sites() if site.weighted]
        tables = {} if bits == FLOAT_BITS else embeddings(self._model.network)
        weights = {site.name: (math.prod(site.weight_shape), plan.weight_copies(site.name)) for site in weighted}
        return {**weights, **{name: (table.weight.numel(), [bits]) for name, table in tables.items()}}

    @cached_property
    def _packed(self) -> Sequence[tuple[str, int]]:
        """Bytes of the integers, by name."""
        return [(name, numbers * sum(bits) // 8) for name, (numbers, bits) in self._copies.items()]

    @cached_property
    def _unpacked(self) -> Sequence[tuple[str, int]]:
        """Bytes of what integers are unpacked to, by name."""
        return [
            (name, COPIES * FLOAT * numbers * sum(one != FLOAT_BITS for one in bits))
            for name, (numbers, bits) in self._copies.items()
        ]

    @cached_property
    def _others(self) -> Sequence[tuple[str, int]]:
        """Bytes of all other parameters, by name."""
        weights = {f"{name}.weight" for name in self._copies}
        parameters = self._model.network.named_parameters()
        return [(name, FLOAT * parameter.numel()) for name, parameter in parameters if name not in weights]

    @property
    def _stored(self) -> int:
        return sum(count for _, count in (*self._packed, *self._others))

    @property
    def _largest(self) -> int:
        """Bytes of the largest weight while it is packed."""
        return PACKING * max(numbers for numbers, _ in self._copies.values())

    def _recorded(self, case: Case, steps: int) -> Memory:
        """A float forward, and a micro-batch's states of all steps, twice while they are stacked."""
        return Memory(self.floating, self.float_activations, 2 * steps * case.cfg.micro_batch * case.state_bytes)

    def _features(self, case: Case) -> Memory:
        """A float forward of a set that reads features; any other set asks no network."""
        reads = construct(case.cfg.calibration_set).feature_images > 0
        return Memory(self.floating, self.float_activations) if reads else Memory()

    def _observed(self, case: Case) -> Memory:
        states = len(case.table) * case.cfg.micro_batch * case.state_bytes
        return Memory(self.floating, self.float_activations, states + OBSERVED * bytes_of_observations(case))

    def _offer(self) -> Memory:
        """The float network, and that of an offer, whose blocks no file holds: what is lent lies on the host."""
        on_host = sum(count for name, count in self._packed if self._block_of(name) is not None)
        return Memory(self.both, self.quantized_activations, on_host)

    def _backward(self, case: Case) -> Memory:
        """Whole networks: a backward pass needs every block that was lent, and layers are unpacked outside of them."""
        offers = len(construct(case.cfg.bitwidth).weights)
        rows = min(TOGETHER, case.cfg.sensitivity.images) * case.most_rows // case.cfg.micro_batch
        networks = self.float_network.whole + offers * self.quantized_network.whole
        return Memory(networks, self._activations(rows, gradients=True))

    def _compared(self, case: Case) -> Memory:
        """The outputs of all layers, which gradients need too; quantized layers are asked outside of their blocks."""
        rows = min(AT_ONCE, case.cfg.micro_batch) * case.most_rows // case.cfg.micro_batch
        networks = self.floating + self.quantized_network.whole + self.decoder
        return Memory(networks, self._activations(rows, gradients=True))

    def _fit(self, case: Case) -> Memory:
        correction = construct(case.cfg.correction)
        if isinstance(correction, Auto):
            images = case.padded(correction.images) * (1 + len(correction.candidates))
            return Memory(self.both + self.decoder, self.quantized_activations, images * case.image_bytes)
        together = min(correction.images_for_rescaling, case.cfg.noise.images)
        rows = max(case.most_rows, together * case.most_rows // case.cfg.micro_batch)
        quantized = self._activations(rows, quantized=True)
        if not correction.keeps_outputs:
            return Memory(self.both, quantized)
        # The outputs of all layers, which gradients need too, of three of four images that layers are rescaled on.
        fitted = (together - together // 4) * case.most_rows // case.cfg.micro_batch
        return Memory(self.both, quantized + self._activations(fitted, gradients=True))

    def _judged(self, case: Case) -> Memory:
        """The float network, a batch of images of all variants, and the features of all, twice as moments are taken."""
        batch = len(VARIANTS) * FeatureExtractor.batch * case.image_bytes
        return Memory(self.floating, 0, batch + 2 * bytes_of_features(case))


def resident() -> int:
    """The most bytes that this process has held so far, which a run that has imported the same holds too."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
