"""The end of a run: its table, figures and report.json, written into the run's own folder."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ptq_diffusion.artefact.files import link_files, write_json, write_text
from ptq_diffusion.bitwidth.step_signal import StepSignal
from ptq_diffusion.correction import Choice, FittedCorrection, StepReport
from ptq_diffusion.engine.factory import plain
from ptq_diffusion.engine.run_files import (
    DRIFT,
    FEATURES,
    IMAGES,
    LAYER_TABLE,
    LAYERS,
    NOISE,
    PLAN,
    REPORT,
    STEPS,
    STRIPS,
    TABLE,
)
from ptq_diffusion.engine.store import Store
from ptq_diffusion.numeric.grid import FLOAT_BITS
from ptq_diffusion.report.figures import drift_curves, noise_curves
from ptq_diffusion.report.layers import draw_layers, layer_rows
from ptq_diffusion.report.plan_figure import plan_figure
from ptq_diffusion.report.provenance import provenance
from ptq_diffusion.report.stages import compares_layers, shows_step_signal
from ptq_diffusion.report.strips import image_strips, strip, write_strip
from ptq_diffusion.stage.drawing.drift import Drift, MeasureDrift, read_drift
from ptq_diffusion.stage.drawing.variants import VARIANTS
from ptq_diffusion.stage.evaluate import Evaluate, read_evaluation
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.plan import Plan, read_plan
from ptq_diffusion.stage.samples import image_batches
from ptq_diffusion.stage.step_signal import MeasureStepSignal

SHOWN = 16
"""Samples that the image grid shows."""


def make_report(store: Store, cfg: DictConfig, folder: Path) -> Mapping[str, Any]:
    """Obtain every stage and write report.json, table.csv, steps.csv and the figures; layers.csv where asked for.

    Args:
        store: where the stages' artefacts are.
        cfg: the whole configuration.
        folder: the run's folder.

    Returns:
        What report.json holds: rows, paired, protocol and its id, correction, the choice of correction=auto,
        provenance, signatures and figures, whose paths are relative to the folder.
    """
    evaluated = store.obtain(Evaluate, cfg)
    evaluation = read_evaluation(evaluated)
    link_files(evaluated / FEATURES, folder / FEATURES)
    figures = _figures(store, cfg, folder)
    choice = Choice.load(store.obtain(Fit, cfg))
    labels = {"full_precision": "none", "quantized": "none", "corrected": cfg.labels.correction}
    rows = [{"variant": row["variant"], "correction": labels[row["variant"]]} | row for row in evaluation["rows"]]
    report = evaluation | {
        "rows": rows,
        "correction": plain(cfg.correction),
        "choice": None if choice is None else asdict(choice),
        "provenance": provenance(store),
        "signatures": dict(store.signatures),
        "figures": [str(figure.relative_to(folder)) for figure in figures],
    }
    _write_csv(folder / TABLE, rows)
    _write_csv(folder / STEPS, step_rows(store, cfg))
    if compares_layers(cfg):
        _write_csv(folder / LAYER_TABLE, layer_rows(store, cfg))
    write_json(folder / REPORT, report)
    return report


def table(report: Mapping[str, Any]) -> Table:
    """The report's rows for the console."""
    protocol, first = report["protocol"], report["rows"][0]
    count = f"{first['images'] * len(first['seeds']):,} images"
    console_table = Table(
        title=f"{protocol['metric']} of {count} against {protocol['against']}",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for title in ("", "mean W/A", "FID ± se", "to float", "PSNR", "SSIM", "GBOPs", "saving", "MB"):
        # A long name is broken where numbers leave it no room, and not cut off.
        console_table.add_column(title, justify="right" if title else "left", no_wrap=bool(title), overflow="fold")
    (gain,) = (p for p in report["paired"] if (p["a"], p["b"], p["metric"]) == ("quantized", "corrected", "fid"))
    low, high = 0 - gain["high"], 0 - gain["low"]
    console_table.caption = (
        f"corrected - quantized: FID {0 - gain['difference']:+.2f}, 95 % within [{low:+.2f}, {high:+.2f}]; smallest "
        f"detectable difference at this sample size: {gain['detectable']:.2f}; full precision counts {FLOAT_BITS} bits "
        f"in operations and MB, whatever model.dtype; every metric is in {TABLE}"
    )
    choice = report["choice"]
    for row in report["rows"]:
        name = row["variant"] if row["variant"] != "corrected" else row["correction"]
        if choice and row["variant"] == "corrected":
            name = f"{name}:\n{choice['chosen']}"
        console_table.add_row(
            name.replace("_", " "),
            f"{row['mean_weight_bits']:.3g}/{row['mean_activation_bits']:.3g}",
            f"{_short(row['fid'])} ± {_short(row['fid_se'])}",
            _short(row["fid_to_fp"]),
            *("" if row.get(name) is None else f"{row[name]:.2f}" for name in ("psnr_to_fp", "ssim_to_fp")),
            f"{row['bops_per_image'] / 1e9:.4g}",
            f"{row['bops_saving']:.1f}x",
            f"{row['weight_bytes'] / 1e6:.2f}",
        )
    return console_table


def _short(distance: float) -> str:
    """A distance with two decimals, of a hundred on with one."""
    return f"{distance:.2f}" if abs(distance) < 100 else f"{distance:.1f}"


def _figures(store: Store, cfg: DictConfig, folder: Path) -> Sequence[Path]:
    strips = {name: strip(next(image_batches(store.obtain(stage, cfg), SHOWN))) for name, stage in VARIANTS.items()}
    (folder / STRIPS).mkdir(exist_ok=True)
    for name, pixels in strips.items():
        write_strip(pixels, folder / STRIPS / f"{name}.png")
    words = {"full_precision": "full precision", "corrected": cfg.labels.correction.replace("_", " ")}
    paths = folder / IMAGES, folder / NOISE, folder / DRIFT, folder / PLAN
    image_strips([(words.get(name, name), pixels) for name, pixels in strips.items()], paths[0])
    steps = step_reports(store, cfg)
    noise_curves(steps, paths[1])
    psnr = {words.get(name, name): drift.psnr for name, drift in _drift(store, cfg).items()}
    drift_curves([step.t for step in steps], psnr, paths[2])
    _draw_plan(store, cfg, paths[3])
    if not compares_layers(cfg):
        return paths
    draw_layers(store, cfg, folder / LAYERS)
    return *paths, folder / LAYERS


def _draw_plan(store: Store, cfg: DictConfig, path: Path) -> None:
    model, signal = store.shop.model(cfg), None
    if shows_step_signal(cfg):
        signal = StepSignal.load(store.obtain(MeasureStepSignal, cfg) / MeasureStepSignal.file)
    table = store.shop.table(cfg, model)
    plan_figure(read_plan(store.obtain(Plan, cfg)), model.architecture(), table, signal, path)


def step_reports(store: Store, cfg: DictConfig) -> Sequence[StepReport]:
    """Diagnostics of the correction at every step."""
    return FittedCorrection.load(store.obtain(Fit, cfg)).report()


def step_rows(store: Store, cfg: DictConfig) -> list[dict[str, float | None]]:
    """A row for each step: the diagnostics of the correction, and the drift of the states that the step leads to."""
    rows = [asdict(step) for step in step_reports(store, cfg)]
    for variant, drift in _drift(store, cfg).items():
        for row, mse, psnr in zip(rows, drift.mse, drift.psnr, strict=True):
            row |= {f"mse_{variant}": mse, f"psnr_{variant}": psnr}
    return rows


def _drift(store: Store, cfg: DictConfig) -> dict[str, Drift]:
    return read_drift(store.obtain(MeasureDrift, cfg))


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
