"""What the run of an experiment is made of."""

from pathlib import Path

from ptq_diffusion.artefact.files import read_json
from ptq_diffusion.engine.run_files import ARTEFACTS


def artefacts(run: Path) -> dict[str, Path]:
    """The folders of all artefacts of a run, by stage, in the store beside the folder that its name lies in."""
    store = next(folder / "store" for folder in run.resolve().parents if (folder / "store").is_dir())
    return {stage: store / stage / signature for stage, signature in read_json(run / ARTEFACTS)}
