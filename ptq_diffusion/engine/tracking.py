"""Experiment trackers by name: none, Weights & Biases, and Lightning's loggers of CSV and TensorBoard."""

import os
import shutil
from abc import abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor

from ptq_diffusion.engine.tracker import Description, Results, Tracker

Mode = Literal["offline", "online"]
MODE = "WANDB_MODE"
"""The variable of the environment by which Weights & Biases is told its mode; it outranks `logger.mode`."""
PATIENCE = 30.0
"""Seconds that a run waits for Weights & Biases to open its log."""


class NoTracker(Tracker):
    """A tracker that logs nothing beside the run's files."""

    def start(self, run: Description) -> Sequence[Logger]:  # noqa: ARG002
        return ()

    def report(self, results: Results) -> None:  # noqa: ARG002
        return

    def finish(self, success: bool) -> None:  # noqa: ARG002
        return


class WandbTracker(Tracker):
    """One Weights & Biases run for each run, by its signature: a repeated run goes on in the same one.

    Nothing leaves the machine unless the mode is online; without a log-in or a connection an online run is logged
    offline, and the user is told so before the work. WANDB_MODE (online, offline, disabled) outranks `mode`.

    Args:
        project: the project's name.
        mode: "offline" writes below the run's folder, "online" uploads.
        entity: the user or team; None for the default of the log-in.
        group: the runs' group; None for that of the sweep, if there is one.
        tags: beside the names of the choices.
        notes: a text about the run, or None.

    Raises:
        ValueError: another mode.
    """

    def __init__(
        self,
        project: str = "ptq-diffusion",
        mode: Mode = "offline",
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"expected logger.mode offline or online, got {mode!r}; logger=none logs nothing")
        self.project, self.mode, self.entity = project, mode, entity
        self.group, self.tags, self.notes = group, tuple(tags), notes
        self._run: Any = None

    def start(self, run: Description) -> Sequence[Logger]:
        mode = os.environ.get(MODE) or self.mode
        if mode == "disabled":
            return ()
        if mode == "online":
            self._open_online(run)
        if self._run is None:
            self._run = self._opened(run, "offline", None)
        return [WandbLogger(experiment=self._run)]

    def report(self, results: Results) -> None:
        if self._run is None:
            return
        import wandb

        self._run.define_metric("steps/*", step_metric="steps/i")
        for row in results.step_numbers():
            self._run.log(row)
        columns: list[Any] = list(results.rows[0])
        table = wandb.Table(columns=columns, data=[[_cell(row[name]) for name in columns] for row in results.rows])
        figures = {name: wandb.Image(str(path), caption=path.name) for name, path in results.figures.items()}
        samples = {
            f"samples/{variant}": [
                wandb.Image(picture, caption=f"{variant}, sample {i}") for i, picture in enumerate(pictures(images))
            ]
            for variant, images in results.images.items()
        }
        self._run.log({"report": table} | figures | samples)
        self._run.summary.update(results.numbers() | ({"chosen": results.choice} if results.choice else {}))

    def finish(self, success: bool) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if success else 1)

    def _open_online(self, run: Description) -> None:
        """Open an online run and show where it is, or say why it is logged offline."""
        import wandb

        try:
            if not wandb.login(prompt=False):
                raise ConnectionError("there is no log-in; wandb login makes one")
            self._run = self._opened(run, "online", "allow")
            run.say(f"Weights & Biases: {self._run.url}")
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            run.say(
                f"Weights & Biases: {reason}; this run is logged offline, upload it later with wandb sync "
                f"{run.folder}/wandb/offline-run-*"
            )

    def _opened(self, run: Description, mode: str, resume: Literal["allow"] | None) -> Any:  # noqa: ANN401
        import wandb

        return wandb.init(
            project=self.project,
            entity=self.entity,
            id=run.id,
            resume=resume,
            name=run.name,
            group=self.group or run.group,
            job_type=run.job_type,
            tags=[*run.tags, *self.tags],
            notes=self.notes,
            dir=run.folder,
            mode=mode,  # type: ignore[arg-type]
            config=dict(run.config),
            # A notebook may have a run of its own open.
            reinit="create_new",
            settings=wandb.Settings(silent=True, init_timeout=PATIENCE),
        )


class LightningTracker(Tracker):
    """A log by one of Lightning's loggers, in a folder of the run's, written anew by a repeated run.

    Attributes:
        place: the folder's name.
    """

    place: str

    def __init__(self) -> None:
        self._logger: Any = None

    @abstractmethod
    def logger(self, folder: Path) -> Logger:
        """The logger that writes below a run's folder."""

    def start(self, run: Description) -> Sequence[Logger]:
        # Lightning would warn of what is there, and append to it.
        shutil.rmtree(run.folder / self.place, ignore_errors=True)
        self._logger = self.logger(run.folder)
        self._logger.log_hyperparams(dict(run.config))
        return [self._logger]

    def report(self, results: Results) -> None:
        for i, row in enumerate(results.step_numbers()):
            self._logger.log_metrics(row, i)
        self._logger.log_metrics(results.numbers(), 0)
        self._logger.save()

    def finish(self, success: bool) -> None:
        if self._logger is not None:
            self._logger.finalize("success" if success else "failed")


class CSVTracker(LightningTracker):
    """Lightning's CSV logger: `csv/metrics.csv` and `csv/hparams.yaml` in the run's folder."""

    place = "csv"

    def logger(self, folder: Path) -> Logger:
        return CSVLogger(folder, name=self.place, version="")


class TensorBoardTracker(LightningTracker):
    """Lightning's TensorBoard logger: events in `tensorboard/` of the run's folder, images included."""

    place = "tensorboard"

    def logger(self, folder: Path) -> Logger:
        if find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
            raise ImportError("expected tensorboard, which is not installed; pip install '.[tensorboard]'")
        return TensorBoardLogger(folder, name=self.place, version="")

    def report(self, results: Results) -> None:
        for variant, images in results.images.items():
            self._logger.experiment.add_images(f"samples/{variant}", images)
        super().report(results)


def pictures(images: Tensor) -> list[Image.Image]:
    """Images, (N, C, H, W) uint8 of 1 or 3 channels, as Pillow has them."""
    return [Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()) for image in images]


def _cell(value: object) -> object:
    return str(value) if isinstance(value, list) else value
