"""Signal and quantization noise of the network's output at every step, for every offer of bits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from ptq_diffusion.bitwidth.evidence import Evidence, load_evidence, require_origin, save_evidence
from ptq_diffusion.model.plan import LayerBits

VERSION = 1
Ratio = Literal["norm", "power"]
"""|m| / |D|, or its square."""


@dataclass(frozen=True, eq=False)
class StepSignal:
    """E|m|^2 and E|D|^2 at every step, D = q - m being the error of a network whose inner layers have an offer's bits.

    Args:
        offered: the K offers.
        signal: (K, S) float64, E|m|^2 at the S steps of a table, above 0.
        error: (K, S) float64, E|D|^2; 0 where bits are float.
        network: fingerprint of the float network.
        table: fingerprint of the table.

    Raises:
        ValueError: shapes that do not fit, an offer that stands twice, or a power that is not finite, negative or, of
            the signal, 0; the message names the offer and the step.
    """

    offered: tuple[LayerBits, ...]
    signal: Tensor
    error: Tensor
    network: str
    table: str

    def __post_init__(self) -> None:
        if self.signal.dim() != 2 or self.signal.shape != self.error.shape or len(self.signal) != len(self.offered):
            raise ValueError(
                f"expected powers of {len(self.offered)} offers at every step, got {tuple(self.signal.shape)} of the "
                f"signal and {tuple(self.error.shape)} of the error"
            )
        if len(set(self.offered)) < len(self.offered):
            raise ValueError("expected every offer of bits once, got one twice")
        for name, power, sound in (
            ("signal", self.signal, self.signal > 0),
            ("error", self.error, self.error >= 0),
        ):
            if len(odd := (~(sound & power.isfinite())).nonzero()):
                offer, step = odd[0].tolist()
                bits = self.offered[offer]
                raise ValueError(
                    f"expected a finite positive power of the {name}, got {power[offer, step].item()} at step {step} "
                    f"with W{bits.weight}A{bits.activation}; measure again"
                )

    @property
    def steps(self) -> int:
        """The number of steps that were measured."""
        return self.signal.shape[1]

    def snr(self, offered: Sequence[LayerBits], ratio: Ratio) -> Tensor:
        """SNR_Q of some offers, (offers, S) float64; infinite where there is no error.

        Args:
            offered: which.
            ratio: `power` is E|m|^2 / E|D|^2, `norm` its square root.

        Raises:
            ValueError: an offer was not measured.
        """
        for bits in offered:
            if bits not in self.offered:
                raise ValueError(
                    f"expected a measurement with W{bits.weight}A{bits.activation}, got none; measure every offer"
                )
        rows = [self.offered.index(bits) for bits in offered]
        power = self.signal[rows] / self.error[rows]
        return power if ratio == "power" else power.sqrt()

    def require(self, network: str, table: str) -> None:
        """Refuse a measurement of another network or table.

        Raises:
            ValueError: a fingerprint differs.
        """
        require_origin("the steps' signal and noise", (self.network, self.table), (network, table))

    def save(self, path: Path) -> None:
        """Write the measurement as safetensors."""
        fields = {
            "offered": [[bits.weight, bits.activation] for bits in self.offered],
            "network": self.network,
            "table": self.table,
        }
        tensors = {"signal": self.signal.double(), "error": self.error.double()}
        save_evidence(path, Evidence.STEP_SNR, VERSION, tensors, fields)

    @classmethod
    def load(cls, path: Path) -> "StepSignal":
        """Read the measurement that `save` wrote, bit for bit.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is broken, or none that `save` wrote.
        """
        tensors, fields = load_evidence(path, Evidence.STEP_SNR, VERSION)
        try:
            offered = tuple(LayerBits(*bits) for bits in fields["offered"])
            return cls(offered, tensors["signal"], tensors["error"], str(fields["network"]), str(fields["table"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"expected a sound measurement in {path}, got {error}; measure again") from error
