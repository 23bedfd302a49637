"""The runs of a sweep as their folders tell it, and the options in which they differ."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ptq_diffusion.artefact.files import read_json
from ptq_diffusion.engine.run_files import CONFIG, FAILURE, REPORT
from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.report.sweep.schema import Config, Failure, Report
from ptq_diffusion.stage.evaluation.schema import require_shape
from ptq_diffusion.stage.planning.additions import CorrectionAdditions
from ptq_diffusion.stage.samples_corrected import CorrectedSamples
from ptq_diffusion.stage.samples_full_precision import FullPrecisionSamples
from ptq_diffusion.stage.samples_quantized import QuantizedSamples
from ptq_diffusion.stage.sensitivity import MeasureSensitivity
from ptq_diffusion.stage.step_signal import MeasureStepSignal

BITS = "W/A"
"""The factor that stands for a policy: its inner bits, or its name where they change with layers or steps."""
ABSENT = "-"
"""The level of an option that a run does not have, such as eta without DDIM."""


@dataclass(frozen=True)
class Run:
    """One run whose goal was a report.

    Args:
        folder: where it lies.
        name: its path below the folder of all runs, by which it is told from the others.
        config: level by dotted key of its configuration, as text; its inner bits are the key `BITS`.
        correction: the name of its correction.
        report: what report.json holds, or None.
        reason: why there is no report; empty where there is one.
    """

    folder: Path
    name: str
    config: Mapping[str, str]
    correction: str
    report: Mapping[str, Any] | None
    reason: str

    def level(self, key: str) -> str:
        """The level of a factor."""
        return self.config.get(key, ABSENT)

    def signature(self, stage: type[Stage]) -> str:
        """The signature of a stage's artefact in this run; empty where it has none."""
        return str(self.report["signatures"].get(stage.name, "")) if self.report else ""


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Every run below some folders whose goal is a report: complete, failed, or neither, which is unfinished.

    Args:
        folders: where runs lie; a run in several of them is read once.

    Raises:
        FileNotFoundError: below one of them there is none.
    """
    top = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    runs: dict[Path, Run] = {}
    for folder in folders:
        places = {path.parent.absolute() for name in (CONFIG, FAILURE) for path in folder.rglob(name)}
        below = [run for place in sorted(places) if (run := _read(place, top)) is not None]
        if not below:
            raise FileNotFoundError(f"expected runs with a {REPORT} below {folder}, found none; run experiments first")
        runs |= {run.folder: run for run in below}
    return list(runs.values())


def read_config(folder: Path) -> dict[str, Any]:
    """A run's configuration, which was resolved when it was written."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(folder / CONFIG)))


def _read(folder: Path, root: Path) -> Run | None:
    """The run in a folder below that of all; None where its goal is another, or the files are somebody else's.

    Raises:
        ValueError: a file is cut off or broken.
    """
    try:
        # A folder's name is the signature of its report, which a later failure, as of a full disk, cannot change.
        complete, failed = (folder / REPORT).is_file(), (folder / FAILURE).is_file()
        report: Any = read_json(folder / REPORT) if complete else None
        failure: Any = read_json(folder / FAILURE) if failed and not complete else None
        if failed and not complete:
            require_shape(Failure, failure)
        config = read_config(folder) if failure is None else failure["config"]
        if not isinstance(config, dict) or config.get("goal") != "report" or "labels" not in config:
            return None
        require_shape(Config, config)
        if complete:
            require_shape(Report, report)
            _require_signatures(report["signatures"])
    except (ValueError, KeyError, OSError, YAMLError, RecursionError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"expected the files of a run in {folder}, got one that cannot be read ({reason}); "
            "remove the folder or run its command again"
        ) from error
    flat = _flat(config)
    flat[BITS] = _bits(flat)
    reason = "" if report else f"unfinished: no {REPORT}"
    if failure is not None:
        reason = f"failed: {failure['error']}: {failure['message']}"
    return Run(folder, folder.relative_to(root).as_posix(), flat, flat["labels.correction"], report, reason)


def _require_signatures(signatures: Mapping[str, str]) -> None:
    """Refuse a report that lacks the signature of a stage whose artefacts runs share."""
    stages: tuple[type[Stage], ...] = (FullPrecisionSamples, QuantizedSamples, CorrectedSamples)
    for stage in stages:
        if stage.name not in signatures:
            raise ValueError(f"signatures: expected one of {stage.name}, got none")


def _bits(flat: dict[str, str]) -> str:
    """The inner bits of a policy by role, taken out of the other options; of another policy its name."""
    inner = [flat.pop(f"bitwidth.inner.{operand}", ABSENT) for operand in ("weight", "activation")]
    return flat["labels.bitwidth"] if ABSENT in inner else "/".join(inner)


def differing(runs: Sequence[Run]) -> list[str]:
    """The keys in which runs differ, what the float samples depend on first; the bits are always among them.

    An option of a correction counts where runs of one correction differ in it, and one of a bitwidth policy, a rounding
    and other `LABELS` likewise, whose names tell all the rest. What changes no number, and what the protocol compares,
    does not count.
    """
    keys = {key for run in runs for key in run.config if not key.startswith(UNCOUNTED)} - {BITS}
    chosen = [key for key in sorted(keys | {f"labels.{name}" for name in LABELS}) if _differs(key, runs)]
    return sorted([*chosen, BITS], key=depth)


def depth(key: str) -> int:
    """0 for what float samples depend on, 1 for what only quantized ones do, 2 for what only corrected ones do."""
    stages: tuple[type[Stage], ...] = (FullPrecisionSamples, QuantizedSamples, CorrectedSamples)
    named = {BITS: "bitwidth", "labels.recipe": "quantizer"}.get(key, key.removeprefix("labels."))
    return next((i for i, stage in enumerate(stages) if named.startswith(_used(stage))), len(stages) - 1)


LABELS: Mapping[str, tuple[str, ...]] = {
    "rounding": ("rounding",),
    "activation_scales": ("activation_scales",),
    "calibration_set": ("calibration_set",),
    "recipe": ("quantizer", "rounding", "activation_scales", "calibration_set"),
}
"""Groups whose choices are told by their names, with the groups of options that a choice of theirs decides."""
UNCOUNTED = (
    "name",
    "labels.",
    "goal",
    "images",
    "seeds",
    "outputs",
    "force",
    "runtime.",
    "logger.",
    "reference.",
    "feature.",
    "metric.",
    "judging.",
    "trial.",
    "drift.",
    "layers.",
    "step_signal.",
    "onnx.",
    "plugins",
)
"""Beginnings of the keys that change no number, or that the protocol compares."""


def _used(stage: type[Stage]) -> tuple[str, ...]:
    """Every part of the configuration that an artefact depends on.

    Evidence of a plan is left out: only some policies read it, and lines of different artefacts stay apart.
    """
    needs = (need for need in stage.needs if need not in (MeasureStepSignal, MeasureSensitivity, CorrectionAdditions))
    return (*stage.uses, *(part for need in needs for part in _used(need)))


def _differs(key: str, runs: Sequence[Run]) -> bool:
    """Whether runs differ in an option, those of one name in any group too that would tell it."""
    group = key.partition(".")[0]
    telling = [name for name, groups in LABELS.items() if group in groups]
    telling += [group] if group in ("correction", "bitwidth") else []
    levels = [run.level(key) for run in runs]
    names = [[run.level(f"labels.{name}") for run in runs] for name in telling]
    return len(set(levels)) > 1 and all(len(set(zip(of, levels, strict=True))) > len(set(of)) for of in names)


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _level(value)
    return flat


def _level(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value)
