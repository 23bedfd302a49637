"""Trials of random inputs: every one is taken or refused in one message; everything else is a traceback."""

import io
import json
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

from matplotlib.figure import Figure
from omegaconf import OmegaConf
from rich.console import Console

from ptq_diffusion.artefact.files import check_whole
from ptq_diffusion.command.conf import CONF
from ptq_diffusion.command.experiment import run
from ptq_diffusion.command.refusal import refusal
from ptq_diffusion.correction import FittedCorrection
from ptq_diffusion.correction.method.auto import Choice
from ptq_diffusion.engine.store import Store
from ptq_diffusion.metric.feature.resnet9 import FEATURE_NETWORKS, ResNet9
from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.network import load_quantized
from ptq_diffusion.report.sweep.collect import collect
from ptq_diffusion.sampler import DDIM
from ptq_diffusion.stage.evaluate import read_evaluation
from ptq_diffusion.stage.plan import read_plan

LONGEST = 1500
"""Characters of a message, of which a path may be many."""


COMPUTING, WAITING = 60, 600
"""Seconds of computing and of waiting after which a trial hangs; a busy machine lengthens only the second."""


class Began(BaseException):
    """All checks were passed, and the computation would begin."""


class Hung(BaseException):
    """A trial took too long."""


@contextmanager
def bounded(computing: float = COMPUTING, waiting: float = WAITING) -> Iterator[None]:
    """Within this context of the main thread, what takes longer is interrupted.

    Args:
        computing: seconds of the processor.
        waiting: seconds of the clock.

    Raises:
        Hung: the time is over.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        place = "" if frame is None else f" in {frame.f_code.co_filename}:{frame.f_lineno}"
        raise Hung(f"{signal.Signals(number).name}{place}")

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, computing), signal.SIGALRM: (signal.ITIMER_REAL, waiting)}
    before = {number: signal.signal(number, stop) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def ending(trial: Callable[[], object]) -> str:
    """`taken`, `refused`, or a text that begins with `traceback`, `untidy` or `hang` and says how it ended."""
    try:
        with redirect_stdout(io.StringIO()), bounded():
            trial()
    except Began:
        return "taken"
    except Hung as hung:
        return f"hang: {hung}"
    except Exception as error:
        message = refusal(error, [], CONF)
        if message is None:
            return f"traceback: {type(error).__name__}: {error}"[:400]
        tidy = "\n" not in message.strip() and len(message) < LONGEST and message.startswith("error: ")
        return "refused" if tidy else f"untidy: {message}"[:400]
    return "taken"


@contextmanager
def begins_only() -> Iterator[None]:
    """Within this context an experiment ends where it would begin to compute."""
    with mock.patch.object(Store, "obtain", side_effect=Began):
        yield


def option_trial(cfg: Any) -> Callable[[], object]:  # noqa: ANN401
    """The trial of a configuration as a plain dict."""
    return lambda: run(OmegaConf.create(cfg))


def file_trials(outputs: Path, model: Path) -> Mapping[Path, Callable[[], object]]:
    """A trial for every JSON file that is read of a finished experiment and its model, by the file."""

    def denoiser() -> None:
        network = DiffusersDenoiser.from_folder(str(model))
        DDIM(3, 1.0, {}).table(network.scheduler_config)
        network.sites()

    (run_folder,) = (path.parent for path in outputs.glob("runs/*/report.json"))
    (run_folder / "failure.json").write_text(json.dumps(_failure(run_folder)))
    failed = outputs / "failed" / "one"
    failed.mkdir(parents=True)
    shutil.move(run_folder / "failure.json", failed / "failure.json")
    network = outputs / "network"
    shutil.copytree(FEATURE_NETWORKS.path("bundled:cifar10net"), network)
    quantized, fitted, plan, evaluated = (_artefact(outputs, name) for name in ("quantize", "fit", "plan", "evaluate"))
    choice = fitted / "choice.json"
    trials = dict.fromkeys(("none", "ptqd"), {"distance": 1.0, "difference": 0.0, "standard_error": 0.1})
    choice.write_text(json.dumps({"chosen": "none", "reason": "no other is closer", "trials": trials}))
    return {
        model / "model_index.json": denoiser,
        model / "unet" / "config.json": denoiser,
        model / "scheduler" / "scheduler_config.json": denoiser,
        run_folder / "report.json": lambda: _collected(outputs / "runs"),
        run_folder / "config.yaml": lambda: _collected(outputs / "runs"),
        failed / "failure.json": lambda: _collected(outputs / "failed"),
        plan / "plan.json": lambda: read_plan(plan),
        next(path for path in quantized.glob("*.json") if path.name != "files.json"): lambda: load_quantized(quantized),
        fitted / "correction.json": lambda: FittedCorrection.load(fitted),
        choice: lambda: Choice.load(fitted),
        evaluated / "evaluation.json": lambda: read_evaluation(evaluated),
        evaluated / "files.json": lambda: check_whole(evaluated),
        network / "config.json": lambda: ResNet9.load(network),
    }


def _collected(folder: Path) -> None:
    """Lay out the tables and figures of a folder of runs."""
    console = Console(file=io.StringIO())
    # Every text is laid out, and no pixel is painted, which would take most of the time.
    with mock.patch.object(Figure, "savefig", lambda figure, *_, **__: figure.draw_without_rendering()):
        sheets = collect([folder]).sheets
    for sheet in sheets:
        console.print(sheet.console())


def document(path: Path) -> Any:  # noqa: ANN401
    """The content of a JSON or YAML file."""
    if path.suffix == ".yaml":
        return OmegaConf.to_container(OmegaConf.load(path))
    return json.loads(path.read_text())


def _failure(run_folder: Path) -> Mapping[str, Any]:
    config = OmegaConf.to_container(OmegaConf.load(run_folder / "config.yaml"))
    return {"error": "ValueError", "message": "no", "overrides": [], "sweep": None, "traceback": "", "config": config}


def _artefact(outputs: Path, stage: str) -> Path:
    return next(path for path in sorted((outputs / "store" / stage).iterdir()) if path.is_dir())
