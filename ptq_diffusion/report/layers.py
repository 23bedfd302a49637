"""The errors of a network's sites as a table and as a figure of a report."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from torch import Tensor

from ptq_diffusion.engine.store import Store
from ptq_diffusion.report.layer_figure import layer_figure
from ptq_diffusion.stage.drawing.layers import COLUMNS, LayerErrors, MeasureLayers
from ptq_diffusion.stage.plan import Plan, read_plan

KINDS = {"own": "each layer by itself", "accumulated": "along its own path"}
"""The second lines of panels' titles."""
Row = Mapping[str, str | int | float | None]


def layer_rows(store: Store, cfg: DictConfig) -> list[Row]:
    """A row for each site and step: kind and bits of the site, and its errors; None where the float output is zero."""
    layers, plan = _errors(store, cfg), read_plan(store.obtain(Plan, cfg))
    model = store.shop.model(cfg)
    sites, table = {site.name: site for site in model.sites()}, store.shop.table(cfg, model)
    numbers = {name: layers.errors[name].tolist() for name in COLUMNS}
    return [
        {
            "site": name,
            "kind": sites[name].kind.value,
            "weight_bits": (bits := plan.at(name, step.i)).weight,
            "activation_bits": bits.activation,
            "step": step.i,
            "t": step.t,
        }
        | {column: None if np.isnan(rows[place][step.i]) else rows[place][step.i] for column, rows in numbers.items()}
        for place, name in enumerate(layers.sites)
        for step in table
    ]


def draw_layers(store: Store, cfg: DictConfig, path: Path) -> None:
    """Draw the errors of all variants; of the corrected one those that differ from the quantized one's."""
    layers, model = _errors(store, cfg), store.shop.model(cfg)
    titles = {"quantized": "quantized", "corrected": cfg.labels.correction.replace("_", " ")}
    panels: dict[tuple[str, str], Tensor] = {}
    for column in COLUMNS:
        kind, _, variant = column.partition("_")
        values = layers.errors[column]
        if not any(values.equal(other) for other in panels.values()):
            panels[titles[variant], KINDS[kind]] = values
    times = [step.t for step in store.shop.table(cfg, model)]
    layer_figure(layers.sites, {title: values.numpy() for title, values in panels.items()}, times, path)


def _errors(store: Store, cfg: DictConfig) -> LayerErrors:
    return LayerErrors.load(store.obtain(MeasureLayers, cfg))
