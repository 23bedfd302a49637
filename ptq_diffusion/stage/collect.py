"""Many reports in one table."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptq_diffusion.metric.protocol import require_one_protocol

COLUMNS = (
    "run",
    "W/A",
    "correction",
    "FID float",
    "FID quantized",
    "FID corrected",
    "corrected - quantized, 95 %",
    "FID to float",
    "PSNR to float",
)


def collect(folder: Path) -> str:
    """A Markdown table with a line for each report.json below a folder, sorted by run.

    The last two columns show quantized -> corrected.

    Raises:
        FileNotFoundError: there is no report.
        ValueError: the reports follow different protocols, so that their numbers cannot stand in one table.
    """
    paths = sorted(folder.rglob("report.json"))
    if not paths:
        raise FileNotFoundError(f"expected report.json files below {folder}, found none; run experiments first")
    reports = {path.parent.name: json.loads(path.read_text()) for path in paths}
    require_one_protocol({run: _protocol(report) for run, report in reports.items()})
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(_line(run, report) for run, report in reports.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _protocol(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The report's protocol; an early one says only in its rows how many images it has."""
    return report["protocol"] | {key: report["rows"][0][key] for key in ("images", "seeds")}


def _line(run: str, report: Mapping[str, Any]) -> tuple[str, ...]:
    full, quantized, corrected = report["rows"]
    (paired,) = (
        pair for pair in report["paired"] if (pair["a"], pair["b"], pair["metric"]) == ("quantized", "corrected", "fid")
    )
    return (
        run,
        f"{quantized['weight_bits']}/{quantized['activation_bits']}",
        corrected["correction"],
        *(f"{row['fid']:.3f} ± {row['fid_se']:.3f}" for row in (full, quantized, corrected)),
        # The report holds quantized - corrected; a reader asks what the correction changed.
        f"{0 - paired['difference']:+.3f} [{0 - paired['high']:+.3f}, {0 - paired['low']:+.3f}]",
        f"{quantized['fid_to_fp']:.3f} -> {corrected['fid_to_fp']:.3f}",
        f"{quantized['psnr_to_fp']:.2f} -> {corrected['psnr_to_fp']:.2f}",
    )
