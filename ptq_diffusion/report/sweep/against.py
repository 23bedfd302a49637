"""Paired differences between lines of one cell, from the stored features of their images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf
from rich.progress import track
from torch import Tensor

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.run_files import FEATURES
from ptq_diffusion.metric import Features, Interval, Paired, paired_fid, paired_fid_to
from ptq_diffusion.report.sweep.baseline import Baseline, variant_of
from ptq_diffusion.report.sweep.lines import FULL_PRECISION, NONE, Line
from ptq_diffusion.report.sweep.runs import Run, read_config
from ptq_diffusion.stage.evaluate import Evaluate
from ptq_diffusion.stage.reference import build_extractor


def with_differences(lines: Sequence[Line], runs: Sequence[Run], baseline: Baseline) -> list[Line]:
    """The lines with FID and FID to float minus those of the baseline in the same cell, and 95 % intervals.

    Args:
        lines: of the runs.
        runs: of one protocol.
        baseline: what lines are compared with.

    Raises:
        FileNotFoundError: neither the runs nor the store beside them has their features.
    """
    by_name = {run.name: run for run in runs}
    done: dict[str, Mapping[str, Interval | str]] = {}
    for cell in track(_cells(lines, baseline), "lines compared", transient=True):
        done |= _differences(cell, baseline, by_name)
    return [replace(line, against=done.get(variant_of(line), {})) for line in lines]


def _cells(lines: Sequence[Line], baseline: Baseline) -> list[list[Line]]:
    """Measured lines that are compared with each other."""
    cells: dict[object, list[Line]] = {}
    for line in lines:
        if line.values and (cell := baseline.cell(line)) is not None:
            cells.setdefault((cell, tuple(line.values["seeds"])), []).append(line)
    return list(cells.values())


def _differences(
    cell: Sequence[Line], baseline: Baseline, runs: Mapping[str, Run]
) -> dict[str, Mapping[str, Interval | str]]:
    """The differences that every line shows; a cell with no baseline, or several, says so."""
    columns = [f"FID - {baseline.name}, 95 %", f"FID to float - {baseline.name}, 95 %"]
    variants, bases = [variant_of(line) for line in cell], baseline.variants(cell)
    if len(bases) != 1:
        return {variant: dict.fromkeys(columns, f"{len(bases) or 'no'} {baseline.name}") for variant in variants}
    (base,) = bases
    metrics = _judged(cell, runs, with_quantized=base == NONE)
    return {
        variant: {column: _minus(paired, variant, base) for column, paired in zip(columns, metrics, strict=True)}
        for variant in variants
        if variant != base
    }


def _judged(cell: Sequence[Line], runs: Mapping[str, Run], with_quantized: bool) -> tuple[Paired, Paired]:
    """FID, and FID to float, of every variant of a cell, as the evaluation of its first run was configured.

    Args:
        cell: its lines.
        runs: by name.
        with_quantized: whether its quantized samples are one more, `NONE`.
    """
    first = runs[cell[0].run]
    cfg = OmegaConf.create(read_config(first.folder))
    extractor = build_extractor(cfg)
    checksum = extractor.checksum()
    places = {NONE: (first, "quantized")} if with_quantized else {}
    for line in cell:
        places[variant_of(line)] = runs[line.run], "quantized" if line.correction == NONE else "corrected"
    features = {name: _features(run, variant, checksum) for name, (run, variant) in places.items()}
    float_features = {FULL_PRECISION: _features(first, "full_precision", checksum)}
    real = construct(cfg.reference).statistics(extractor)
    resampling, strata = (cfg.judging.replicates, cfg.judging.seed), len(cfg.seeds)
    to_float = paired_fid_to(FULL_PRECISION, float_features | features, checksum, *resampling, strata=strata)
    return to_float if real is None else paired_fid(features, real.moments, *resampling, strata=strata), to_float


def _features(run: Run, variant: str, extractor: str) -> Tensor:
    """Feature vectors of a variant's images, (N, D), from the run's own folder or the store beside it."""
    # A run's name may have folders of its own, so the store is beside one of those above.
    ending = Path(FEATURES) / f"{variant}.safetensors"
    stored = Path("store") / Evaluate.name / run.signature(Evaluate) / ending
    places = [run.folder / ending, *(above / stored for above in run.folder.parents)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"expected the features of the images of {run.folder} in its {ending} or in its outputs at {stored}, found "
            "neither; copy that folder too, run its command again or collect without --against"
        )
    return Features.load(path, extractor).vectors


def _minus(paired: Paired, first: str, second: str) -> Interval:
    if (first, second) in paired.differences:
        return paired.differences[first, second]
    return paired.differences[second, first].reversed
