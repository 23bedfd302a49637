"""What correcting adds to a quantized step: OMP_NUM_THREADS=1 python experiments/speed/corrected_step.py [ROUNDS].

Every correction takes turns with the network alone, in one process and thread; a repair is measured apart too, since it
is a small difference of large times.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from hydra import compose, initialize_config_dir
from measure import BATCH, calibrated
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ptq_diffusion.command.conf import CONF
from ptq_diffusion.correction import FoldedLayer, PairedBatch, PathEvidence, StepCorrection, fold
from ptq_diffusion.correction.path_state import PathState
from ptq_diffusion.correction.repair.repair import Repair
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.memory.allocator import keep_freed_memory
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser
from ptq_diffusion.network import FloatWeight, QuantizedDenoiser
from ptq_diffusion.sampler import Step

NAMES = ("wiener", "matched", "wiener_matched", "readout", "readout_matched", "rescaled", "rescaled_matched")
FOLDED = ("readout", "readout_matched")
ALONE, AGAIN = "quantized, W4A8", "quantized, W4A8, again"


def composed(*overrides: str) -> DictConfig:
    """The default experiment, three steps of it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", ["sampler.steps=3", *overrides])


def fitted(name: str, model: Denoiser, quantized: QuantizedDenoiser, x_t: Tensor, step: Step) -> StepCorrection:
    """One step's repairs; what they cost does not depend on how well they were fitted."""
    correction = construct(composed(f"correction={name}").correction)
    rescalings, m = correction.rescalings(model, quantized, PathState(x_t, step, None))
    q, features, _ = quantized.at(step.i, rescalings).predict(x_t, step)
    assert features is not None
    evidence = PathEvidence([PairedBatch(0, q, x_t, features, m, x_t, m)])
    return replace(correction.fit_step(evidence, step), rescalings=rescalings)


def alternated(tasks: Mapping[str, Callable[[], object]], rounds: int) -> Mapping[str, Sequence[float]]:
    """CPU seconds of every task and round; the tasks take turns, every other round backwards."""
    spent: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds + 1):
        for name in list(tasks)[:: 1 if turn % 2 else -1]:
            since = time.process_time()
            tasks[name]()
            spent[name].append(time.process_time() - since)
    return {name: own[1:] for name, own in spent.items()}


@torch.inference_mode()
def main() -> None:
    """Print a row for each correction."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    keep_freed_memory()
    torch.set_num_threads(1)
    cfg = composed()
    shop = Workshop(Runtime("cpu", progress=False))
    model = shop.model(cfg)
    quantized, step = calibrated(cfg, model, shop), shop.table(cfg, model)[1]
    x_t = torch.randn(BATCH, *model.shape, generator=torch.Generator().manual_seed(0))
    q, features, _ = quantized.predict(x_t, step)
    assert features is not None
    found = {name: fitted(name, model, quantized, x_t, step) for name in NAMES}
    steps = alternated(whole_steps(found, quantized, x_t, step), rounds)
    repairs = alternated({name: partial(own.output, q, x_t, features) for name, own in found.items()}, rounds)
    macs = sum(site.macs for site in model.sites()) + model.attention_macs()
    counted = {name: sum(one.macs(model.shape) for one in own.repairs) / macs for name, own in found.items()}
    Console(width=120).print(table(steps, repairs, counted))


def whole_steps(
    found: Mapping[str, StepCorrection], quantized: QuantizedDenoiser, x_t: Tensor, step: Step
) -> Mapping[str, Callable[[], object]]:
    """The network alone, twice, with each correction, and with what folds within its output layer."""

    def repaired(network: QuantizedDenoiser, repairs: Sequence[Repair]) -> Tensor:
        m, features, _ = network.predict(x_t, step)
        for repair in repairs:
            m = repair.output(m, x_t, features)
        return m

    whole: dict[str, Callable[[], object]] = {name: partial(repaired, quantized, ()) for name in (ALONE, AGAIN)}
    for name, own in found.items():
        whole[name] = partial(repaired, quantized.at(step.i, own.rescalings), own.repairs)
    for name in FOLDED:
        layer = fold(quantized.output_layer, step.i, found[name], quantized.shape[0])
        whole[f"{name}, folded"] = partial(repaired, with_output_layer(quantized, layer), layer.repairs)
    return whole


def with_output_layer(quantized: QuantizedDenoiser, layer: FoldedLayer) -> QuantizedDenoiser:
    """The network with a filter within its output layer."""
    network = quantized.with_settings(quantized.settings)
    network.output_layer.weights = nn.ModuleList([FloatWeight(layer.weight)])
    network.output_layer.bias = layer.bias
    return network


def table(
    steps: Mapping[str, Sequence[float]], repairs: Mapping[str, Sequence[float]], counted: Mapping[str, float]
) -> Table:
    """A row for a step against itself, one for each correction and one for each that is folded."""

    def shares(name: str) -> Sequence[str]:
        """Of the time of a step and of its multiplications."""
        if name not in counted:
            return ()
        share = statistics.median(repairs[name]) / statistics.median(steps[ALONE])
        return f"{100 * share:.2f} %", f"{100 * counted[name]:.2f} %"

    shown = Table("", "step / uncorrected", "quartiles", "repair alone", "of the step's MACs")
    for name in [name for name in steps if name != ALONE]:
        ratios = [mine / other for mine, other in zip(steps[name], steps[ALONE], strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        shown.add_row(name, f"{ratio:.3f}", f"{low:.3f} .. {high:.3f}", *shares(name))
    return shown


if __name__ == "__main__":
    main()
