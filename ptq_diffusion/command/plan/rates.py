"""Seconds that passes take, by a short measurement of the networks or by a rate of multiply-accumulates."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from omegaconf import DictConfig

from ptq_diffusion.command.plan.case import Case
from ptq_diffusion.command.plan.forecast import Forecast
from ptq_diffusion.command.plan.one_row import quantized_by_one_row
from ptq_diffusion.command.plan.work import Work
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser

LONGEST = 20.0
"""Seconds that a measured forward may take, about; of a network that takes longer fewer rows are asked."""
ROUNDS = 3
"""Forwards of which the median counts, the networks taking turns."""


@dataclass(frozen=True)
class Rates:
    """Seconds of one row, or of one image that is decoded.

    Args:
        float_pass: of the float network.
        quantized_pass: of the quantized network as it is simulated.
        decoding: of one image.
        origin: where the numbers come from, in words.
    """

    float_pass: float
    quantized_pass: float
    decoding: float
    origin: str

    def seconds(self, work: Work) -> float:
        """Seconds of a stage's passes; gradients of states take about one pass more, all layers alone one each."""
        floats = work.float_passes + work.backward_passes
        quantized = work.quantized_passes + work.layer_passes
        return floats * self.float_pass + quantized * self.quantized_pass + work.decoded * self.decoding

    @classmethod
    def of_speed(cls, macs_per_second: float, forecast: Forecast) -> "Rates":
        """The rates of a device that does so many multiply-accumulates a second, whatever the network.

        Raises:
            ValueError: the speed is not above 0, or not finite.
        """
        if not 0 < macs_per_second < math.inf:
            raise ValueError(
                f"expected a finite --speed above 0, got {macs_per_second}; give multiply-accumulates a second"
            )
        one = forecast.macs / macs_per_second
        return cls(one, one, forecast.decoder_macs / macs_per_second, f"at {macs_per_second:.3g} a second")


def measured_rates(cfg: DictConfig, case: Case, shop: Workshop) -> Rates:
    """The rates of this machine, by forwards of a micro-batch of noise, or of fewer rows where they take long.

    Args:
        cfg: the whole configuration.
        case: the same with outlines.
        shop: loads the networks.

    Raises:
        FileNotFoundError: the folder of the model has no weights.
    """
    model, step, decoder = shop.model(cfg), case.table[0], shop.decoder(cfg)

    def forward(network: Denoiser, rows: int) -> Callable[[], object]:
        x_t = torch.randn(rows, *model.shape, device=shop.device)
        condition = model.blank_condition(rows, shop.device)
        return lambda: network.predict(x_t, step, condition)

    with torch.inference_mode():
        one = _seconds([forward(model, 1)], shop.device)[0]
        rows = max(1, min(case.most_rows, int(LONGEST / one)))
        quantized = quantized_by_one_row(cfg, case, shop)
        latent = torch.zeros(1, *model.shape, device=shop.device)
        tasks = [forward(model, rows), forward(quantized, rows), lambda: decoder.decode(latent)]
        floats, quantizeds, decoding = _seconds(tasks, shop.device)
    origin = f"by forwards of {rows:,} rows on {shop.device.type}, {torch.get_num_threads()} threads"
    return Rates(floats / rows, quantizeds / rows, decoding, origin)


def _seconds(tasks: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """The median time of each task, after one round that does not count."""
    rounds: list[list[float]] = [[] for _ in tasks]
    for _ in range(1 + ROUNDS):
        for task, times in zip(tasks, rounds, strict=True):
            start = time.perf_counter()
            task()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            times.append(time.perf_counter() - start)
    return [median(times[1:]) for times in rounds]
