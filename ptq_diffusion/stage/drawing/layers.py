"""Stage: the relative error of every quantized site at every step, by itself and along the quantized path."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor, nn

from ptq_diffusion.artefact.files import read_json, write_json
from ptq_diffusion.artefact.tensors import write_tensors
from ptq_diffusion.engine.chunks import Chunk, ChunkWork, chunks, read_chunks, require_chunks, run_chunks
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.metric.metric import FLOAT
from ptq_diffusion.network import QuantizedDenoiser
from ptq_diffusion.network.layer_errors import POWER, StepErrors
from ptq_diffusion.stage.drawing.images import DrawImages
from ptq_diffusion.stage.drawing.side_by_side import COMPARED, works_of_variants
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.quantize import Quantize

COLUMNS = tuple(f"{kind}_{name}" for name in COMPARED for kind in ("own", "accumulated"))
"""The names of the errors."""
AT_ONCE = 4
"""Images that are sampled together: the outputs of all layers of the float network at a step are in memory."""
ERRORS, SITES, ORDER = "layers.safetensors", "sites.json", "order"


@dataclass(frozen=True)
class LayerErrors:
    """Relative errors of a network's sites: the squares of an error over those of the float output, summed over images.

    Args:
        sites: names, in the order in which the network computes them.
        errors: (sites, steps) float64 by name. `own_quantized` is that of each site alone, on the float network's
            input; `accumulated_quantized` that of its output where the quantized network samples from the same noise,
            with all that came before it; `own_corrected` and `accumulated_corrected` those of the corrected network.
            NaN where the float output is zero.
    """

    sites: Sequence[str]
    errors: Mapping[str, Tensor]

    @classmethod
    def load(cls, folder: Path) -> "LayerErrors":
        """The errors of the stage's folder."""
        return cls(read_json(folder / SITES), load_file(folder / ERRORS))


class CompareSites(ChunkWork):
    """Sampling of all variants side by side, sites compared at every step.

    Args:
        variants: the work that draws each, `FLOAT` among them.
    """

    def __init__(self, variants: Mapping[str, DrawImages]) -> None:
        super().__init__()
        self.variants = nn.ModuleDict(variants)

    def forward(self, chunk: Chunk, device: torch.device) -> dict[str, Tensor]:
        works = {name: work for name, work in self.variants.items() if isinstance(work, DrawImages)}
        model, sites = works[FLOAT].model, works[FLOAT].model.sites()
        networks = {name: work.model for name, work in works.items() if isinstance(work.model, QuantizedDenoiser)}
        walks = {name: work.visits(chunk, device) for name, work in works.items()}
        sums: dict[str, list[Tensor]] = {kind: [] for kind in (POWER, *COLUMNS)}
        order: list[str] = []
        for step in works[FLOAT].steps:
            errors = StepErrors(sites, step, networks)
            with errors.of_float(model.network):
                next(walks[FLOAT])
            for name in COMPARED:
                with errors.of_quantized(name):
                    next(walks[name])
            order = order or errors.order
            for kind, columns in sums.items():
                columns.append(errors.sums[kind])
        places = {site.name: place for place, site in enumerate(sites)}
        # A site that is not computed comes last.
        in_order = dict.fromkeys([*order, *places])
        return {kind: torch.stack(columns, 1) for kind, columns in sums.items()} | {
            ORDER: torch.tensor([places[name] for name in in_order])
        }


class MeasureLayers(ModelStage):
    """`layers.safetensors` and `sites.json`: `LayerErrors` on the first images of the first seed."""

    name = "layers"
    version = 1
    needs = (Quantize, Fit, EncodePrompts)
    uses = ("model", "condition", "sampler", "backend", "seeds", "micro_batch", "layers")
    scratch = ("chunks",)

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        run_chunks(partial(self.work, cfg, inputs), layer_chunks(cfg), out / "chunks", shop, self.title)
        parts = list(read_chunks(out / "chunks"))
        totals = {kind: torch.stack([part[kind] for part in parts]).sum(0) for kind in (POWER, *COLUMNS)}
        order, power = parts[0][ORDER], totals[POWER]
        relative = {kind: torch.where(power > 0, totals[kind] / power, torch.nan)[order] for kind in COLUMNS}
        sites = shop.model(cfg).sites()
        write_json(out / SITES, [sites[place].name for place in order.tolist()])
        write_tensors(out / ERRORS, relative)

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop) -> CompareSites:
        """The work of every device."""
        return CompareSites(works_of_variants(cfg, inputs, shop))


def layer_chunks(cfg: DictConfig) -> list[Chunk]:
    """The images that sites are compared on, the first of the first seed, without padding.

    Raises:
        ValueError: see `require_layers`.
    """
    require_layers(cfg)
    parts = chunks("images", list(cfg.seeds)[:1], cfg.layers.images, min(cfg.micro_batch, AT_ONCE))
    return [replace(part, size=part.count) for part in parts]


def require_layers(cfg: DictConfig) -> None:
    """Refuse images that sites cannot be compared on.

    Raises:
        ValueError: none is asked for, or see `require_chunks`.
    """
    if cfg.layers.images < 1:
        raise ValueError(
            f"expected images to compare layers on, got layers.images={cfg.layers.images}; set layers.images=8"
        )
    require_chunks(list(cfg.seeds)[:1], cfg.layers.images, cfg.micro_batch)
