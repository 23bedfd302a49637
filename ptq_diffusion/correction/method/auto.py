"""The correction that a short sampling run chooses."""

import json
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, astuple, dataclass, field
from math import isfinite
from pathlib import Path
from statistics import NormalDist
from typing import Any, Protocol

from torch import Tensor

from ptq_diffusion.artefact.files import read_json
from ptq_diffusion.correction.contract import Correction, JointRequirements
from ptq_diffusion.quantizer import Form

NONE, FLOAT = "none", "full_precision"
"""The candidate that the others must beat, and the model that they are to come close to."""
ERROR = 0.025
"""The chance, at most, that a candidate is chosen which is no closer than none."""
CHOICE = "choice.json"
log = logging.getLogger(__name__)


class Judge(Protocol):
    """A measure of how far samples are from the float model's, smaller being closer."""

    def __call__(
        self, full_precision: Tensor, variants: Mapping[str, Tensor], against: str
    ) -> Mapping[str, tuple[float, float, float]]:
        """The fields of a `Trial` for every variant.

        Args:
            full_precision: images of the float model, (N, C, H, W) uint8.
            variants: images from the same noise, by name.
            against: the variant that the others are compared with.
        """

    def checksum(self) -> str:
        """The checksum of the files that it read."""


@dataclass(frozen=True)
class Trial:
    """The distance of one candidate's samples to the float model's.

    Args:
        distance: to the float samples from the same noise.
        difference: distance less that of no correction.
        standard_error: of the difference, paired.
    """

    distance: float
    difference: float
    standard_error: float


@dataclass(frozen=True)
class Choice:
    """The choice of a candidate, and its reason.

    Args:
        chosen: its name.
        reason: one sentence.
        trials: of all candidates.
        notes: why candidates act as they would without one of their options, by name.
    """

    chosen: str
    reason: str
    trials: Mapping[str, Trial]
    notes: Mapping[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write `choice.json` into an existing folder."""
        (folder / CHOICE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Choice | None":
        """Read what `save` wrote; None for a correction that nobody had to choose.

        Raises:
            ValueError: the file holds something else.
        """
        if not (folder / CHOICE).is_file():
            return None
        try:
            record = read_json(folder / CHOICE)
            trials = {name: Trial(**trial) for name, trial in record["trials"].items()}
            choice = cls(record["chosen"], record["reason"], trials, dict(record.get("notes", {})))
            numbers = [number for trial in trials.values() for number in astuple(trial)]
            texts = (record["reason"], *choice.notes.values())
            if record["chosen"] not in trials or not all(isinstance(text, str) for text in texts):
                raise TypeError(f"{record['chosen']!r:.100} for {record['reason']!r:.100}")
            if not all(isinstance(number, float | int) and isfinite(number) for number in numbers):
                raise TypeError(f"trials of {numbers!r:.100}")
            return choice
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"expected a choice that Choice.save wrote in {folder}, got another ({error}); fit or export it again"
            ) from error


class Auto(JointRequirements):
    """The candidate whose samples come closest to the float model's, if it certainly harms nothing; else none.

    Each candidate is fitted on the images of `noise`, then samples `images` others. The closest is used if its distance
    is below that of no correction with the whole of its paired interval, widened by Bonferroni for the number of
    candidates: a one-sided error of 2.5 % in all. Published corrections harm some networks
    (PTQD on DiT-XL/2 at W4A8: FID 16.45 against 15.31 without), and no error of a single step tells which: only final
    samples do.

    Args:
        candidates: corrections by name; "none" is among them.
        images: how many samples of each candidate.
        seed: of their noise, which neither fitting nor evaluation draws from.
        judge: says how far they are from the float model's.

    Raises:
        ValueError: there is no candidate "none" or none beside it, or fewer than 2 images.
    """

    def __init__(self, candidates: Mapping[str, Correction[Any]], images: int, seed: int, judge: Judge) -> None:
        corrections = {name for name, candidate in candidates.items() if isinstance(candidate, Correction)}
        if odd := sorted(candidates.keys() - corrections):
            raise ValueError(
                f"expected candidates that are corrections to be fitted, got another in {', '.join(odd)}; "
                "add one with +correction@correction.candidates.NAME=NAME"
            )
        if FLOAT in candidates:
            raise ValueError(f"expected candidates with names of their own, {FLOAT!r} is the float model's; rename it")
        if NONE not in candidates or len(candidates) < 2:
            raise ValueError(
                f"expected candidates with {NONE!r} and others, got {', '.join(candidates) or 'none'}; "
                "add +correction@correction.candidates.none=none"
            )
        if images < 2 or seed < 0:
            raise ValueError(
                f"expected trial.images of at least 2 and trial.seed of at least 0, got {images} and {seed}; set "
                "trial.images and trial.seed"
            )
        self.candidates, self.images, self.seed, self.judge = dict(candidates), images, seed, judge

    def _check_all(self, check: Callable[[Correction[Any]], None]) -> None:
        refused: dict[str, list[str]] = {}
        for name, candidate in self.candidates.items():
            try:
                check(candidate)
            except ValueError as error:
                refused.setdefault(str(error), []).append(name)
        if refused:
            reasons = "; ".join(f"of {', '.join(names)}: {reason}" for reason, names in refused.items())
            words = " ".join(f"~correction.candidates.{name}" for names in refused.values() for name in names)
            raise ValueError(f"{reasons}; or leave out with {words}")

    def check_inputs(self, forms: Collection[Form]) -> None:
        """Say which candidates have no input to act on; they are tried as they are, equal to one without the option."""
        for name, reason in self.without_input(forms).items():
            log.warning("of the candidate %s: %s", name, reason)

    def without_input(self, forms: Collection[Form]) -> dict[str, str]:
        """The candidates with an option for which no input of these forms is, and why, by name."""
        reasons = {}
        for name, candidate in self.candidates.items():
            try:
                candidate.check_inputs(forms)
            except ValueError as error:
                reasons[name] = str(error)
        return reasons

    def choose(
        self, full_precision: Tensor, variants: Mapping[str, Tensor], notes: Mapping[str, str] | None = None
    ) -> Choice:
        """The choice from images of the float model and of every candidate, see `Judge`; it keeps the notes."""
        judgement = self.judge(full_precision, variants, NONE)
        trials = {name: Trial(*numbers) for name, numbers in judgement.items()}
        best = min((name for name in trials if name != NONE), key=lambda name: trials[name].distance)
        trial = trials[best]
        width = NormalDist().inv_cdf(1 - ERROR / (len(trials) - 1)) * trial.standard_error
        low, high = trial.difference - width, trial.difference + width
        reason = (
            f"{best} is the closest to the float model's samples: {trial.distance:.3f}, {trial.difference:+.3f} "
            f"[{low:+.3f}, {high:+.3f}] against none"
        )
        if high < 0:
            return Choice(best, reason, trials, notes or {})
        return Choice(NONE, f"{reason}, which is not certainly closer", trials, notes or {})
