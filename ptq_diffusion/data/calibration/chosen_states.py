"""The states that a calibration set holds, by step and image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ptq_diffusion.artefact.digest import tensors_digest
from ptq_diffusion.artefact.files import read_json, write_json

VERSION = 1
"""The version of the form of a file."""


@dataclass(frozen=True)
class ChosenStates:
    """The states of float sampling that a calibration set holds.

    A state x_t is told by its step and its image: image j starts from noise j of the calibration's seed, under
    condition j.

    Args:
        chosen: (S, N) bool, whether the state of image j at step i is one of them.

    Raises:
        ValueError: none is.
    """

    chosen: Tensor

    def __post_init__(self) -> None:
        if self.chosen.dim() != 2 or not self.chosen.any():
            raise ValueError(
                "expected a calibration set of at least one state, got an empty one; raise calibration.images"
            )

    @classmethod
    def every(cls, steps: int, images: int) -> "ChosenStates":
        """All states of so many images at so many steps."""
        return cls(torch.ones(steps, images, dtype=torch.bool))

    def require(self, steps: int, images: int) -> None:
        """Refuse a choice among other states than these.

        Raises:
            ValueError: the message gives both.
        """
        if self.chosen.shape != (steps, images) or self.chosen.dtype != torch.bool:
            raise ValueError(
                f"expected a choice among the states of {steps} steps and {images} images as bool, got "
                f"{tuple(self.chosen.shape)} of {self.chosen.dtype}; mend the calibration_set that made it"
            )

    @property
    def counts(self) -> list[int]:
        """The number of states at every step."""
        return [int(count) for count in self.chosen.sum(1)]

    def rows(self, step: int, samples: slice) -> Tensor:
        """The places of a step's states among some of the images, ascending int64."""
        return self.chosen[step, samples].nonzero().flatten()

    def digest(self) -> str:
        """Sixteen hex digits over the choice."""
        return tensors_digest({"chosen": self.chosen})

    def save(self, path: Path, seed: int, times: Sequence[float]) -> None:
        """Write the images of every step as JSON, with its time.

        Args:
            path: of the file.
            seed: of the images' noise and conditions.
            times: of the S steps.
        """
        steps = [
            {"t": float(t), "images": row.nonzero().flatten().tolist()}
            for t, row in zip(times, self.chosen, strict=True)
        ]
        content = {"version": VERSION, "digest": self.digest(), "seed": seed, "images": self.chosen.shape[1]}
        write_json(path, content | {"steps": steps})

    @classmethod
    def load(cls, path: Path) -> "ChosenStates":
        """Read what `save` wrote.

        Raises:
            ValueError: the file is of another version, or holds something else or another choice than its digest says.
        """
        content = read_json(path)
        if not isinstance(content, dict) or content.get("version") != VERSION:
            raise ValueError(f"expected a calibration set of version {VERSION} in {path}, got another; make it again")
        try:
            digest = content["digest"]
            chosen = torch.zeros(len(content["steps"]), content["images"], dtype=torch.bool)
            for row, step in zip(chosen, content["steps"], strict=True):
                row[torch.tensor(step["images"], dtype=torch.int64)] = True
        except (KeyError, TypeError, IndexError, RuntimeError) as error:
            raise ValueError(f"expected a calibration set in {path}, got something else ({error})") from error
        states = cls(chosen)
        if states.digest() != digest:
            raise ValueError(f"expected the calibration set {digest} in {path}, got {states.digest()}; make it again")
        return states
