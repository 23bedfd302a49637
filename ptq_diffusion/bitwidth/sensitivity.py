"""Damage that few bits in one layer at one step do to the final sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ptq_diffusion.bitwidth.evidence import Evidence, load_evidence, require_origin, save_evidence

VERSION = 1


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Damage of every (site, step, bits), for weights and for activations apart.

    The damage of a plan is taken as the sum over its sites and steps, to first order. Each entry is of one tensor
    quantized alone, or, with `sensitivity.steps=correlated`, its share of what equal bits at all steps do together,
    times the weight of its step, see `sensitivity.first_step`.

    Args:
        sites: the L layers that were measured.
        weight_bits: the W bitwidths of weights, ascending.
        activation_bits: the A bitwidths of activations, ascending.
        weight: (L, S, W) float64, at the S steps of a table.
        activation: (L, S, A) float64.
        network: fingerprint of the float network.
        table: fingerprint of the table.

    Raises:
        ValueError: shapes that do not fit, or a damage that is not finite; the message names site, step and bits.
    """

    sites: tuple[str, ...]
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    weight: Tensor
    activation: Tensor
    network: str
    table: str

    def __post_init__(self) -> None:
        steps = self.weight.shape[1] if self.weight.dim() == 3 else 0
        for operand, damage, bits in self._operands():
            expected = (len(self.sites), steps, len(bits))
            if tuple(damage.shape) != expected:
                raise ValueError(
                    f"expected a damage of {operand} bits for every site, step and bitwidth, {expected}, got "
                    f"{tuple(damage.shape)}"
                )
            if len(odd := (~damage.isfinite()).nonzero()):
                site, step, place = odd[0].tolist()
                raise ValueError(
                    f"expected finite sensitivities, got a sensitivity that is not finite "
                    f"({damage[site, step, place].item()}) of {self.sites[site]} at step {step} with {bits[place]} "
                    f"{operand} bits; measure again"
                )

    @property
    def steps(self) -> int:
        """The number of steps that were measured."""
        return self.weight.shape[1]

    def select(
        self, sites: Sequence[str], steps: int, weights: Sequence[int], activations: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Damage of some bits: of weights, (sites, steps, weights), and of activations, (sites, steps, activations).

        Raises:
            ValueError: a site or a bitwidth was not measured, or another number of steps was.
        """
        if steps != self.steps:
            raise ValueError(f"expected sensitivities of {steps} steps, got those of {self.steps}; measure again")
        rows = _places("site", self.sites, sites)
        selected = [
            damage[rows][:, :, _places(f"{operand} bits", offers, bits)]
            for (operand, damage, offers), bits in zip(self._operands(), (weights, activations), strict=True)
        ]
        return selected[0], selected[1]

    def require(self, network: str, table: str) -> None:
        """Refuse a measurement of another network or table.

        Raises:
            ValueError: a fingerprint differs.
        """
        require_origin("sensitivities", (self.network, self.table), (network, table))

    def save(self, path: Path) -> None:
        """Write the measurement as safetensors."""
        fields = {
            "sites": list(self.sites),
            "weight_bits": list(self.weight_bits),
            "activation_bits": list(self.activation_bits),
            "network": self.network,
            "table": self.table,
        }
        tensors = {"weight": self.weight.double(), "activation": self.activation.double()}
        save_evidence(path, Evidence.SENSITIVITY, VERSION, tensors, fields)

    @classmethod
    def load(cls, path: Path) -> "Sensitivity":
        """Read the measurement that `save` wrote, bit for bit.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is broken, or none that `save` wrote.
        """
        tensors, fields = load_evidence(path, Evidence.SENSITIVITY, VERSION)
        try:
            return cls(
                tuple(fields["sites"]),
                tuple(fields["weight_bits"]),
                tuple(fields["activation_bits"]),
                tensors["weight"],
                tensors["activation"],
                str(fields["network"]),
                str(fields["table"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"expected sound sensitivities in {path}, got {error}; measure again") from error

    def _operands(self) -> tuple[tuple[str, Tensor, tuple[int, ...]], ...]:
        return (("weight", self.weight, self.weight_bits), ("activation", self.activation, self.activation_bits))


def _places(what: str, measured: Sequence[object], values: Sequence[object]) -> list[int]:
    if missing := [value for value in values if value not in measured]:
        raise ValueError(f"expected a sensitivity of {what} {missing[0]}, got none; measure again")
    return [measured.index(value) for value in values]
