"""Paired differences between corrections of one cell, from the stored features of their images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.progress import track
from torch import Tensor

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.run_files import FEATURES
from ptq_diffusion.metric import Features, Interval, Paired, paired_fid, paired_fid_to
from ptq_diffusion.report.sweep.lines import FULL_PRECISION, NONE, Line
from ptq_diffusion.report.sweep.runs import Run, read_config
from ptq_diffusion.stage.evaluate import Evaluate
from ptq_diffusion.stage.reference import build_extractor

BEST = "best"
"""The word for the correction of the lowest FID in each cell, chosen by the numbers that it is judged by."""


def with_differences(lines: Sequence[Line], runs: Sequence[Run], against: str) -> list[Line]:
    """The lines with FID and FID to float minus those of one correction of the same cell, and 95 % intervals.

    Args:
        lines: of the runs.
        runs: of one protocol.
        against: a correction's name, `NONE` or `BEST`.

    Raises:
        FileNotFoundError: neither the runs nor the store beside them has their features.
    """
    by_name = {run.name: run for run in runs}
    done: dict[str, Mapping[str, Interval | str]] = {}
    for cell in track(_cells(lines), "corrections compared", transient=True):
        done |= _differences([by_name[line.run] for line in cell], against)
    return [replace(line, against=done[line.run]) if line.gain and line.run in done else line for line in lines]


def known_corrections(runs: Sequence[Run], against: str | None) -> None:
    """Refuse to compare with a correction that no complete run has.

    Raises:
        ValueError: it is none of theirs, `NONE` or `BEST`.
    """
    names = sorted({run.correction for run in runs if run.report})
    if against is not None and against not in (BEST, NONE, *names):
        raise ValueError(f"expected a correction among {', '.join(sorted({*names, NONE}))} or best, got {against!r}")


def _cells(lines: Sequence[Line]) -> list[list[Line]]:
    """Measured lines of corrections, by the levels and the seeds that they share."""
    cells: dict[object, list[Line]] = {}
    for line in lines:
        if line.gain:
            cells.setdefault((tuple(line.levels.items()), tuple(line.values["seeds"])), []).append(line)
    return list(cells.values())


def _differences(runs: Sequence[Run], against: str) -> dict[str, Mapping[str, Interval | str]]:
    """The differences that the table line of every run shows; a cell without the other correction says so."""
    cfg = OmegaConf.create(read_config(runs[0].folder))
    names = {run.name: run.correction for run in runs}
    best = min(runs, key=lambda run: run.report["rows"][2]["fid"] if run.report else 0.0).name
    base = best if against == BEST else next((run for run, name in names.items() if name == against), None)
    base = NONE if against == NONE else base
    columns = [f"FID - {against}, 95 %", f"FID to float - {against}, 95 %"]
    if base is None:
        return {run: dict.fromkeys(columns, f"no {against}") for run in names}
    metrics = _judged(cfg, runs)
    return {
        run: {column: _minus(paired, run, base) for column, paired in zip(columns, metrics, strict=True)}
        for run in names
        if run != base
    }


def _judged(cfg: DictConfig, runs: Sequence[Run]) -> tuple[Paired, Paired]:
    """FID, and FID to float, of every variant of a cell, as the run's evaluation was configured."""
    extractor = build_extractor(cfg)
    checksum = extractor.checksum()
    places = {FULL_PRECISION: (runs[0], "full_precision"), NONE: (runs[0], "quantized")}
    places |= {run.name: (run, "corrected") for run in runs}
    features = {name: _features(run, variant, checksum) for name, (run, variant) in places.items()}
    real = construct(cfg.reference).statistics(extractor)
    resampling, strata = (cfg.judging.replicates, cfg.judging.seed), len(cfg.seeds)
    to_float = paired_fid_to(FULL_PRECISION, features, checksum, *resampling, strata=strata)
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
