"""Sensitivities of weights that are rounded to nearest, and of those that a rounding chooses, as a budget reads them.

python -m experiments.sensitivity_rounding.measure ROUNDING IMAGES STEPS SAVING ...

Both are measured on the bundled CIFAR-10 network; each makes its plan for every saving, and both plans are judged by
the sensitivity that knows the rounding.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from ptq_diffusion.bitwidth.sensitivity import Sensitivity
from ptq_diffusion.command.conf import CONF
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.runtime import Runtime, quiet_libraries
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model.plan import BitwidthPlan
from ptq_diffusion.stage.sensitivity import MeasureSensitivity

OFFER = ("bitwidth.weights=[2,3,4]", "bitwidth.activations=[3,4,6,8]")
MEASURE = ("sensitivity.distance=euclidean", "sensitivity.steps=independent", "sensitivity.first_step=1")


def composed(rounding: str, images: int, steps: int, saving: float) -> DictConfig:
    """An experiment whose budget has weights to choose."""
    counts = (f"{option}={images}" for option in ("calibration.images", "noise.images", "sensitivity.images"))
    words = [*counts, f"sampler.steps={steps}", "bitwidth=budget", f"bitwidth.saving={saving}", *OFFER, *MEASURE]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [*words, f"rounding={rounding}"])


def plan(cfg: DictConfig, sensitivity: Sensitivity, shop: Workshop) -> BitwidthPlan:
    """The plan of a budget by a sensitivity."""
    model = shop.model(cfg)
    table = shop.table(cfg, model)
    made: BitwidthPlan = construct(cfg.bitwidth).plan(model.architecture(table), table, sensitivity)
    return made


def damage(plan: BitwidthPlan, sensitivity: Sensitivity) -> float:
    """The sum of the damages of a plan's bits."""
    total = 0.0
    for place, site in enumerate(sensitivity.sites):
        for i in range(sensitivity.steps):
            bits = plan.at(site, i)
            total += float(sensitivity.weight[place, i, sensitivity.weight_bits.index(bits.weight)])
            total += float(sensitivity.activation[place, i, sensitivity.activation_bits.index(bits.activation)])
    return total


def main(rounding: str, images: int, steps: int, savings: list[float]) -> None:
    """Print how the sensitivities differ, and the plans that they make."""
    quiet_libraries()
    console, shop = Console(width=120), Workshop(Runtime("cpu", progress=False))
    with TemporaryDirectory() as folder:
        store = Store(Path(folder), shop)
        experiments = (composed(name, images, steps, 30) for name in ("nearest", rounding))
        folders = [store.obtain(MeasureSensitivity, cfg) for cfg in experiments]
        nearest, rounded = (Sensitivity.load(one / MeasureSensitivity.file) for one in folders)
    table = Table("weight bits", "damage, nearest", f"damage, {rounding}", "rank correlation of layers")
    for place, bits in enumerate(nearest.weight_bits):
        sides = [one.weight[:, :, place].sum(1) for one in (nearest, rounded)]
        correlation = spearmanr(*(side.numpy() for side in sides)).statistic
        table.add_row(str(bits), *(f"{float(side.sum()):.4f}" for side in sides), f"{correlation:.3f}")
    console.print(table)
    table = Table(
        "saving", "damage of nearest's plan", f"of that of {rounding}", "ratio", "layers whose weights differ"
    )
    for saving in savings:
        cfg = composed(rounding, images, steps, saving)
        plans = [plan(cfg, one, shop) for one in (nearest, rounded)]
        damages = [damage(one, rounded) for one in plans]
        odd = sum(plans[0].at(site, 0).weight != plans[1].at(site, 0).weight for site in nearest.sites)
        cells = [f"{one:.5f}" for one in damages]
        table.add_row(f"{saving:g}", *cells, f"{damages[0] / damages[1]:.3f}", f"{odd} of {len(nearest.sites)}")
    console.print(table)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), [float(word) for word in sys.argv[4:]])
