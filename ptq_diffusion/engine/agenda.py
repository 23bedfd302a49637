"""Progress of a run: the number of each artefact among all, and an estimate of the time left."""

from collections.abc import Mapping

Key = tuple[str, str]
"""An artefact: the name of its stage and its signature."""

TIMED = 0.01
"""Below this share of a run's work no time left is told: of a first small artefact most of the time is loading."""


class Agenda:
    """The artefacts of a run in their order."""

    def __init__(self) -> None:
        self._efforts: dict[Key, float] = {}
        self._done, self._seconds = 0.0, 0.0

    def add(self, efforts: Mapping[Key, float]) -> None:
        """Append artefacts; one that is there already keeps its place.

        Args:
            efforts: about how much work each is, in any unit; 0 of one that is there already.
        """
        for key, effort in efforts.items():
            self._efforts.setdefault(key, effort)

    def holds(self, stage: str, signature: str) -> bool:
        """Whether an artefact is one of them."""
        return (stage, signature) in self._efforts

    def place(self, stage: str, signature: str) -> str:
        """The place of an artefact, `3 of 9`, with the time left from its start once enough work has been timed."""
        keys = list(self._efforts)
        place = keys.index((stage, signature))
        left = sum(self._efforts[key] for key in keys[place:])
        text = f"{place + 1} of {len(keys)}"
        if not left or self._done < TIMED * (self._done + left):
            return text
        return f"{text} ({_duration(left * self._seconds / self._done)} left)"

    def done(self, stage: str, signature: str, seconds: float) -> None:
        """Note that an artefact is made and how long that took."""
        self._done += self._efforts[stage, signature]
        self._seconds += seconds


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(round(seconds), 1)} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
