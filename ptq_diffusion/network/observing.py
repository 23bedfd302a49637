"""Observation of a network: distributions of layers' inputs and of attention's operands, and outputs one by one."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ptq_diffusion.model.site import Kind, Site, products_by_attention
from ptq_diffusion.network.attention import AT_ONCE, watching_operands
from ptq_diffusion.network.layer import QuantizedConv2d, QuantizedLinear
from ptq_diffusion.quantizer import Form, Quantizer, Static, StepGroups

CHANNELS = {Kind.CONV2D: QuantizedConv2d.channels, Kind.LINEAR: QuantizedLinear.channels, Kind.MATMUL: -1}
"""The dimension of the channels of a site's operands: of images, or of tokens."""
GROUPS, EQUALISATION = "groups", "equalisation"
"""The last parts of the names of an operand's groups of steps and of a layer's equalisation in a file."""
MOST_BITS = 8
"""Bits of the quantizers that observe; their observations serve all bitwidths."""


class InputObservations:
    """The distribution of every operand that is no weight, observed once for all bitwidths, in groups of steps.

    Args:
        sites: of a float network.
        activation: from a bitwidth to a fresh quantizer of an input.
        groups: of steps, each of which has ranges of its own; None is one for all steps.
        steps: of the table.
        softmax: from a bitwidth to a fresh quantizer of an output of attention's softmax; None is that of inputs. What
            it needs is observed by the quantizer of inputs.

    Raises:
        ValueError: the quantizer has a granularity that only that of a weight can have, or the groups do not fit the
            steps or the network.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        activation: Callable[[int], Quantizer],
        groups: StepGroups | None = None,
        steps: int = 1,
        softmax: Callable[[int], Quantizer] | None = None,
    ) -> None:
        self._make, self._softmax = activation, softmax
        self._channels = {name: (CHANNELS[site.kind], site.skip) for site in sites for name in site.operands}
        self._layers = [site.name for site in sites if site.weighted]
        self._attentions = list(products_by_attention(sites))
        _require_of_inputs(activation(MOST_BITS), softmax and softmax(MOST_BITS))
        if groups is not None:
            groups.require(list(self._channels), steps)
        self._group: dict[str, list[int]] = {
            name: [0] if groups is None else groups.observed(name, steps) for name in self._channels
        }
        self._observers = {
            name: [self._fresh(name, MOST_BITS) for _ in set(group)] for name, group in self._group.items()
        }
        self._equalisation: dict[str, Tensor] = {}
        self._seen: set[tuple[str, int]] = set()

    def _fresh(self, operand: str, bits: int) -> Quantizer:
        return self._make(bits).of_input(*self._channels[operand])

    @property
    def steps(self) -> int:
        """The number of steps that ranges are told apart for; 1 where they serve any number."""
        return max(len(group) for group in self._group.values())

    def groups(self, operand: str) -> Sequence[int]:
        """The group of every step whose range an operand has; one number for all steps, or one for each."""
        return tuple(self._group[operand])

    def require(self, counts: Sequence[int]) -> None:
        """Refuse states that leave a group of steps, which has a static range of its own, without any.

        Args:
            counts: the number of states at every step.

        Raises:
            ValueError: the message names an operand and a step of the group.
        """
        if not isinstance(self._make(MOST_BITS).form, Static):
            return
        for name, group in self._group.items():
            seen = {group[i % len(group)] for i, count in enumerate(counts) if count}
            if missing := sorted(set(group) - seen):
                raise ValueError(
                    f"expected a calibration set with states of every group of steps, got none of that of step "
                    f"{group.index(missing[0])}, at which {name} has a range of its own; choose "
                    "step_groups@quantizer.steps=one, fewer groups, or calibration_set=uniform"
                )

    def equalise(self, factors: Mapping[str, Tensor]) -> None:
        """Observe inputs over these factors, which broadcast against them, by layer; before anything is observed."""
        self._equalisation = dict(factors)

    def equalisation(self, operand: str) -> Tensor | None:
        """The factors over which an operand was observed, which broadcast against it; None is 1."""
        return self._equalisation.get(operand)

    @contextmanager
    def observing(self, network: nn.Module, i: int = 0) -> Iterator[None]:
        """Within this context a forward of the float network at step i is observed."""

        def see(operand: str, x: Tensor) -> None:
            group, factors = self._group[operand], self._equalisation.get(operand)
            equalised = x if factors is None else x.float() * (1 / factors.to(x.device))
            place = group[0] if len(group) == 1 else group[i]
            self._observers[operand][place].observe(equalised)
            self._seen.add((operand, place))

        with ExitStack() as hooks:
            hooks.enter_context(showing_inputs(network, self._layers, see))
            hooks.enter_context(watching_operands(network, self._attentions, see, AT_ONCE))
            yield

    def tensors(self) -> dict[str, Tensor]:
        """The observations so far, by operand/group/name; a group of steps without a state has no part in them."""
        return {
            f"{operand}/{place}/{part}": tensor
            for operand, observers in self._observers.items()
            for place, observer in enumerate(observers)
            if (operand, place) in self._seen
            for part, tensor in observer.observation().items()
        }

    def join(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        """Take what others have observed of other states, each the `tensors` of one, in place of observing.

        Counts are whole numbers, so the result is that of one that observes all states, bit for bit.
        """
        by_place = [_by_place(part) for part in parts]
        for operand, observers in self._observers.items():
            for place, observer in enumerate(observers):
                if observations := [part[operand, place] for part in by_place if (operand, place) in part]:
                    observer.observed(*observations)
                    self._seen.add((operand, place))

    def divide(self, groups: StepGroups) -> None:
        """Join the observations of steps that belong together, once all are observed."""
        for name, observers in self._observers.items():
            observations = [observer.observation() for observer in observers]
            if len(observers) > 1 and not groups.is_exact(name) and all(observations):
                features = torch.stack([observation["extremes"].flatten() for observation in observations])
                division = groups.divided(features)
                joined = [self._fresh(name, MOST_BITS) for _ in set(division)]
                for place, observer in enumerate(joined):
                    pairs = zip(division, observations, strict=True)
                    observer.observed(*(observation for group, observation in pairs if group == place))
                self._observers[name] = joined
                self._group[name] = [division[group] for group in self._group[name]] if len(joined) > 1 else [0]

    def quantizer(self, operand: str, bits: int, group: int = 0) -> Quantizer:
        """The frozen quantizer of an operand at so many bits; the input of a layer has the layer's name.

        Args:
            operand: its name.
            bits: of the quantizer.
            group: of steps.

        Raises:
            RuntimeError: nothing was observed; the message names the operand.
        """
        quantizer = self._of(operand, bits)
        try:
            quantizer.observed(self._observers[operand][group].observation())
        except RuntimeError as error:
            raise RuntimeError(f"{operand}: {error}") from error
        quantizer.freeze()
        return quantizer

    def form(self, operand: str) -> Form:
        """The arithmetic of an operand's quantizer, whatever its bits, before anything is observed."""
        return self._of(operand, MOST_BITS).form

    def _of(self, operand: str, bits: int) -> Quantizer:
        """A fresh quantizer of the kind that an operand is quantized by."""
        if self._softmax is not None and operand.rpartition(".")[0] in self._attentions and operand.endswith(".p"):
            return self._softmax(bits).of_input(*self._channels[operand])
        return self._fresh(operand, bits)

    def save(self, path: Path) -> None:
        """Write all observations as safetensors, by operand/group/name, the groups and the factors beside them."""
        tensors = {f"{name}/{GROUPS}": torch.tensor(group) for name, group in self._group.items()}
        tensors |= {f"{name}/{EQUALISATION}": factors for name, factors in self._equalisation.items()}
        for operand, observers in self._observers.items():
            for place, observer in enumerate(observers):
                tensors |= {f"{operand}/{place}/{part}": tensor for part, tensor in observer.observation().items()}
        save_file(tensors, path)

    def restore(self, path: Path) -> None:
        """Take the observations that `save` wrote, and their groups of steps.

        Raises:
            ValueError: the file is broken, or holds observations of other operands or another kind of quantizer.
        """
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"expected observations of layers' inputs in {path}, got a broken file ({error}); calibrate again"
            ) from error
        parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            operand, _, part = name.partition("/")
            parts[operand][part] = tensor
        if odd := sorted(parts.keys() ^ self._channels.keys()):
            raise ValueError(
                f"{path} holds observations of another network: only one of both has {odd[0]} ({len(odd)} differ); "
                "calibrate again"
            )
        for operand, own in parts.items():
            if GROUPS not in own:
                raise ValueError(f"expected the groups of steps of {operand} in {path}, got none; calibrate again")
            self._group[operand] = own.pop(GROUPS).tolist()
            if EQUALISATION in own:
                self._equalisation[operand] = own.pop(EQUALISATION)
            self._observers[operand] = [self._fresh(operand, MOST_BITS) for _ in set(self._group[operand])]
            for place, observer in enumerate(self._observers[operand]):
                begin = f"{place}/"
                observer.observed({k.removeprefix(begin): t for k, t in own.items() if k.startswith(begin)})
                self._seen.add((operand, place))


def _by_place(tensors: Mapping[str, Tensor]) -> Mapping[tuple[str, int], Mapping[str, Tensor]]:
    """Observations that are named operand/group/name, by operand and group."""
    observations: defaultdict[tuple[str, int], dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        operand, place, part = name.split("/")
        observations[operand, int(place)][part] = tensor
    return observations


def _require_of_inputs(activation: Quantizer, softmax: Quantizer | None) -> None:
    """Refuse quantizers that do not fit what they are to quantize, or each other."""
    for place, quantizer in (("activation", activation), ("softmax", softmax)):
        if quantizer is not None and not quantizer.granularity.of_inputs:
            raise ValueError(
                f"expected a quantizer of activations, got one with {quantizer.granularity}, which only weights can "
                f"have; choose quantizer@quantizer.{place}=affine_per_tensor or symmetric_per_tensor"
            )
    if not activation.signed:
        raise ValueError(
            f"expected a quantizer of activations, which may be negative, got a {type(activation).__name__}, which "
            "serves outputs of a softmax; choose it as quantizer@quantizer.softmax"
        )
    if softmax and isinstance(softmax.form, Static) and not isinstance(activation.form, Static):
        raise ValueError(
            "expected a quantizer of softmax outputs that needs no calibration beside one of activations without, got "
            f"a {type(softmax).__name__}; choose quantizer@quantizer.softmax=log2 or leave it out"
        )


@contextmanager
def watching(network: nn.Module, names: Iterable[str], see: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """Within this context the outputs of some layers are shown; what `see` returns takes their place, if any."""
    with ExitStack() as hooks:
        for name in names:
            layer = network.get_submodule(name)
            hooks.enter_context(layer.register_forward_hook(lambda _, __, output, name=name: see(name, output)))
        yield


@contextmanager
def showing_inputs(network: nn.Module, layers: Iterable[str], see: Callable[[str, Tensor], object]) -> Iterator[None]:
    """Within this context the first inputs of some layers are shown by name, before they are computed with."""
    with ExitStack() as hooks:
        for name in layers:
            layer = network.get_submodule(name)
            hooks.enter_context(layer.register_forward_pre_hook(lambda _, inputs, name=name: _shown(see, name, inputs)))
        yield


def _shown(see: Callable[[str, Tensor], object], name: str, inputs: tuple[Tensor, ...]) -> None:
    see(name, inputs[0])
