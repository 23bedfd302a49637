"""The quantizers of a whole network, apart from it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ptq_diffusion.artefact.digest import tensors_digest
from ptq_diffusion.model.plan import BitwidthPlan
from ptq_diffusion.model.site import Site
from ptq_diffusion.numeric.grid import FLOAT_BITS
from ptq_diffusion.quantizer import Quantizer


@dataclass(frozen=True)
class LayerQuantizers:
    """The quantizers of one layer's weight and input; None stands for float.

    Raises:
        ValueError: the activation's is per channel.
    """

    weight: Quantizer | None
    activation: Quantizer | None

    def __post_init__(self) -> None:
        if self.activation is not None and self.activation.per_channel:
            raise ValueError(
                "expected a per-tensor activation quantizer, got one per channel, which only weights can have; "
                "choose quantizer@quantizer.activation=affine_per_tensor or symmetric_per_tensor"
            )


class NetworkQuantizers:
    """Quantizers by site, as a plan asks for them.

    Args:
        sites: the network's sites.
        plan: bits of every site.
        weight: from a bitwidth to a fresh weight quantizer.
        activation: from a bitwidth to a fresh activation quantizer.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        plan: BitwidthPlan,
        weight: Callable[[int], Quantizer],
        activation: Callable[[int], Quantizer],
    ) -> None:
        def fresh(make: Callable[[int], Quantizer], bits: int) -> Quantizer | None:
            return None if bits == FLOAT_BITS else make(bits)

        self.plan = plan
        self.layers: Mapping[str, LayerQuantizers] = {
            site.name: LayerQuantizers(
                fresh(weight, plan[site.name].weight), fresh(activation, plan[site.name].activation)
            )
            for site in sites
        }
        self._shapes = {site.name: site.weight_shape for site in sites}

    def observe_weights(self, network: nn.Module) -> None:
        """Show every weight quantizer its weight."""
        for name, layer in self.layers.items():
            if layer.weight is not None:
                layer.weight.observe(network.get_parameter(f"{name}.weight"))

    def freeze(self) -> None:
        """Freeze all.

        Raises:
            RuntimeError: a quantizer saw nothing; the message names its layer.
        """
        for name, quantizer in self._named():
            try:
                quantizer.freeze()
            except RuntimeError as error:
                raise RuntimeError(f"{name}: {error}") from error

    def save(self, path: Path) -> None:
        """Write scales and zero points of the frozen quantizers as safetensors; metadata says what they belong to."""
        save_file(self.tensors(), path, metadata={"owners": json.dumps(self._owners())})

    def restore(self, path: Path) -> None:
        """Freeze with what `save` wrote.

        Raises:
            ValueError: the file is broken, or holds quantizers of other layers, bits, grids or weights.
        """
        try:
            with safe_open(path, framework="pt") as file:
                recorded = json.loads((file.metadata() or {}).get("owners", "{}"))
        except SafetensorError as error:
            raise ValueError(
                f"expected quantizers that NetworkQuantizers.save wrote in {path}, got a broken file ({error}); "
                "calibrate or export again"
            ) from error
        owners = self._owners()
        if recorded != owners:
            odd = sorted(name for name in owners.keys() | recorded.keys() if owners.get(name) != recorded.get(name))
            raise ValueError(
                f"{path} holds quantizers of another network or plan: {odd[0]} is {recorded.get(odd[0])} there and "
                f"{owners.get(odd[0])} here ({len(odd)} differ); calibrate again"
            )
        tensors = load_file(path)
        for name, quantizer in self._named():
            quantizer.adopt({part: tensors[f"{name}/{part}"] for part, _ in quantizer.named_buffers()})

    def tensors(self) -> dict[str, Tensor]:
        """Every quantizer's parameters, by `layer/operand/name`."""
        named = self._named()
        return {f"{name}/{part}": buffer.contiguous() for name, q in named for part, buffer in q.named_buffers()}

    def _owners(self) -> dict[str, str]:
        """What every quantizer is and the shape of its layer's weight, by `layer/operand`."""
        return {name: f"{quantizer} of {self._shapes[name.rpartition('/')[0]]}" for name, quantizer in self._named()}

    def _named(self) -> list[tuple[str, Quantizer]]:
        pairs = [
            (f"{name}/{operand}", quantizer)
            for name, layer in self.layers.items()
            for operand, quantizer in (("weight", layer.weight), ("activation", layer.activation))
        ]
        return [(name, quantizer) for name, quantizer in pairs if quantizer is not None]


def network_fingerprint(network: nn.Module) -> str:
    """Sixteen hex digits over every parameter and buffer of a network, quantizers included."""
    return tensors_digest(network.state_dict())
