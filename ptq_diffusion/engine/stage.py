"""The contract of a stage."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from omegaconf import DictConfig

from ptq_diffusion.engine.models import model_checksum
from ptq_diffusion.engine.workshop import Workshop


class Stage(ABC):
    """A stage: it makes an artefact, a folder of files, from a part of the configuration and from earlier artefacts.

    Class attributes:
        name: the folder in the store, and what an experiment's `goal` names.
        version: raised when the meaning of the result changes.
        needs: the stages whose artefacts `make` may receive; see `inputs`.
        uses: dotted keys of the configuration that `make` is given; it can read no other.
        unread: dotted keys within those of `uses` that `make` is not given, for they change no number of its own.
        places: dotted keys within those of `uses` of paths: `evidence` has the checksums of the files there, and the
            paths themselves are left out of the signature.
        scratch: what `make` leaves in its folder only to go on from after an interruption; removed at the end.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    needs: ClassVar[tuple[type["Stage"], ...]] = ()
    uses: ClassVar[tuple[str, ...]]
    unread: ClassVar[tuple[str, ...]] = ()
    places: ClassVar[tuple[str, ...]] = ()
    scratch: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def serves(cls, cfg: DictConfig) -> bool:  # noqa: ARG003
        """Whether a run of this whole configuration needs the artefact; by default it does."""
        return True

    @classmethod
    def made_of(cls, cfg: DictConfig) -> DictConfig:
        """A whole configuration with fixed values of options that change no number of the artefact.

        All that differ in those alone share one artefact. By default every option that the stage uses counts.
        """
        return cfg

    def inputs(self, cfg: DictConfig) -> Mapping[str, "Need"]:
        """The needs of a whole configuration, by the names that `make` receives them by.

        By default they are those of `needs` that serve it.
        """
        return {need.name: Need(need, cfg) for need in self.needs if need.serves(cfg)}

    @property
    def title(self) -> str:
        """The words in front of its progress bar."""
        return self.name.replace("_", " ")

    @abstractmethod
    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        """Fill the folder `out`, which may hold what an interrupted attempt left.

        Args:
            cfg: the part of the configuration named by `uses`.
            inputs: the artefact folder of each need, by the name that `inputs` gives it.
            out: an existing folder, renamed into the store when this method returns.
            shop: builds models and tables; its runtime has devices, progress and loggers, which change no number.
        """

    def evidence(self, cfg: DictConfig) -> dict[str, str]:  # noqa: ARG002
        """Checksums of the files outside the store that the stage reads, such as the model's weights."""
        return {}


@dataclass(frozen=True)
class Need:
    """An artefact that a stage is made from.

    Args:
        stage: which makes it.
        cfg: the configuration that it is made of.
        remedy: what to do where it cannot be made, beside what the error says.
    """

    stage: type[Stage]
    cfg: DictConfig
    remedy: str = ""


class ModelStage(Stage):
    """A stage that reads the model, whose weights are part of its signature."""

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        return {"model": model_checksum(cfg)}


def upstream(stage: type[Stage]) -> frozenset[str]:
    """The names of a stage and of all stages that it is made of."""
    return frozenset(one.name for one in needed(stage))


def needed(stage: type[Stage]) -> Iterator[type[Stage]]:
    """All stages on the way to one and itself, earliest first, whatever the configuration; some come more than once."""
    for need in stage.needs:
        yield from needed(need)
    yield stage
