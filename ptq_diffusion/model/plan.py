"""The value that a bitwidth policy fills: how many bits every site gets at every step."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ptq_diffusion.model.site import Site
from ptq_diffusion.numeric.grid import FLOAT_BITS

VERSION = 1
"""The version of the saved form."""


@dataclass(frozen=True)
class LayerBits:
    """Bits of one layer's weight and of its input activation: 2 to 8, or 32 for float.

    Of a product of attention, `activation` is of Q or P, its first operand, and `weight` of K or V, its second.

    Raises:
        ValueError: a bitwidth is neither.
    """

    weight: int
    activation: int

    def __post_init__(self) -> None:
        for name, bits in (("weight", self.weight), ("activation", self.activation)):
            if bits != FLOAT_BITS and not (isinstance(bits, int) and 2 <= bits <= 8):
                raise ValueError(f"expected {name} bits of 2 to 8, or {FLOAT_BITS} for float, got {bits}")


@dataclass(frozen=True)
class BitwidthPlan:
    """Bits of every site, by the site's name, at every step of a table.

    Args:
        weight: bits of every site's weight; one number is for all steps, S numbers are for the steps 0 to S - 1 of a
            table of S.
        activation: bits of every site's input, likewise.
        notes: what the policy says of the plan, such as the damage that it predicts; no part of what the plan is.

    Raises:
        ValueError: weights and activations are of different sites, the numbers of steps disagree, a bitwidth is neither
            2 to 8 nor 32, or a note is not finite.
    """

    weight: Mapping[str, tuple[int, ...]]
    activation: Mapping[str, tuple[int, ...]]
    notes: Mapping[str, float] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if odd := self.weight.keys() ^ self.activation.keys():
            raise ValueError(f"expected weight and activation bits of the same sites, got only one of {min(odd)}")
        lengths = {len(bits) for bits in self._series()}
        if 0 in lengths or len(lengths - {1}) > 1:
            raise ValueError(f"expected bits of one step or of the same number of steps, got {sorted(lengths)} of them")
        for name in self.weight:
            for bits in set(self.weight[name]):
                LayerBits(bits, FLOAT_BITS)
            for bits in set(self.activation[name]):
                LayerBits(FLOAT_BITS, bits)
        for name, value in self.notes.items():
            if not abs(value) < float("inf"):
                raise ValueError(f"expected notes that are finite, got {name} = {value}")

    @classmethod
    def constant(cls, layers: Mapping[str, LayerBits]) -> "BitwidthPlan":
        """The plan with the same bits at every step."""
        return cls.by_step([layers])

    @classmethod
    def by_step(
        cls, table: Sequence[Mapping[str, LayerBits]], notes: Mapping[str, float] | None = None
    ) -> "BitwidthPlan":
        """The plan of a table whose step i gives every site the bits table[i]; what never changes is said once.

        Raises:
            ValueError: there is no step, or steps are of different sites.
        """
        if not table or any(layers.keys() != table[0].keys() for layers in table):
            raise ValueError(f"expected bits of the same sites at one step or more, got {len(table)} steps")
        return cls(
            {name: _once(tuple(layers[name].weight for layers in table)) for name in table[0]},
            {name: _once(tuple(layers[name].activation for layers in table)) for name in table[0]},
            dict(notes or {}),
        )

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of all sites, in order."""
        return tuple(self.weight)

    @cached_property
    def steps(self) -> int:
        """The number of steps that it is made for; 1 of a plan that fits any number."""
        return max((len(bits) for bits in self._series()), default=1)

    @cached_property
    def varies(self) -> bool:
        """Whether any bits change from step to step."""
        return any(len(set(bits)) > 1 for bits in self._series())

    def at(self, site: str, i: int) -> LayerBits:
        """Bits of a site at step i, 0 at t = T.

        Raises:
            KeyError: the plan has no such site.
            ValueError: the plan has no such step.
        """
        self._require_site(site)
        if i < 0 or (self.steps > 1 and i >= self.steps):
            raise ValueError(
                f"the bitwidth plan has {self.steps} steps and none of number {i}; it was made for another table"
            )
        return LayerBits(_entry(self.weight[site], i), _entry(self.activation[site], i))

    def __getitem__(self, site: str) -> LayerBits:
        """Bits of a site of a plan that does not vary.

        Raises:
            KeyError: the plan has no such site.
            ValueError: the plan varies.
        """
        if self.varies:
            raise ValueError(f"expected a plan with the same bits at all steps, this one has {self.steps}; name a step")
        return self.at(site, 0)

    def counts(self, site: str, rows: Sequence[int]) -> Mapping[LayerBits, int]:
        """The number of rows, of those that are asked at every step, for which a site has which bits.

        A plan made for one step takes any number of steps.

        Raises:
            KeyError: the plan has no such site.
            ValueError: the plan is made for another number of steps.
        """
        self._require_steps(len(rows))
        if self.steps == 1:
            return {self.at(site, 0): sum(rows)}
        counts = Counter[LayerBits]()
        for i, count in enumerate(rows):
            counts[self.at(site, i)] += count
        return counts

    def weight_copies(self, site: str) -> tuple[int, ...]:
        """The bitwidths in which a site's weight is stored, ascending; each is a copy.

        Raises:
            KeyError: the plan has no such site.
        """
        self._require_site(site)
        return tuple(sorted(set(self.weight[site])))

    def require(self, sites: Iterable[Site], steps: int) -> None:
        """Refuse a plan of another network, or of a table with another number of steps.

        Raises:
            ValueError: the message names the first site that is missing or unknown, or both numbers of steps.
        """
        names = {site.name for site in sites}
        if odd := sorted(names ^ self.weight.keys()):
            verb = "lacks" if odd[0] in names else "has"
            raise ValueError(
                f"expected a bitwidth plan of this network's {len(names)} sites, got one of {len(self.weight)}, which "
                f"{verb} {odd[0]} ({len(odd)} differ); it was made for another network, make the plan again"
            )
        self._require_steps(steps)

    def to_json(self) -> str:
        """The plan as JSON text, which `from_json` reads."""
        content = {"weight": dict(self.weight), "activation": dict(self.activation), "notes": dict(self.notes)}
        return json.dumps({"version": VERSION} | content, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "BitwidthPlan":
        """The plan that `to_json` wrote.

        Raises:
            ValueError: the text is something else, or of another version.
        """
        try:
            content = json.loads(text)
            if content["version"] != VERSION:
                raise ValueError(f"version {content['version']} in place of {VERSION}")
            weight, activation = (
                {name: tuple(bits) for name, bits in content[operand].items()} for operand in ("weight", "activation")
            )
            return cls(weight, activation, {name: float(value) for name, value in content["notes"].items()})
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"expected a bitwidth plan of version {VERSION}, got other content ({type(error).__name__}: {error}); "
                "make the plan again"
            ) from error

    def fingerprint(self) -> str:
        """Sixteen hex digits that two plans share only if all their bits are the same."""
        text = json.dumps([dict(self.weight), dict(self.activation)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _series(self) -> Iterable[tuple[int, ...]]:
        return (*self.weight.values(), *self.activation.values())

    def _require_site(self, site: str) -> None:
        if site not in self.weight:
            raise KeyError(f"the bitwidth plan has no site {site!r}; it was made for another network")

    def _require_steps(self, steps: int) -> None:
        if self.steps not in (1, steps):
            raise ValueError(
                f"expected a bitwidth plan of {steps} steps, got one of {self.steps}; it was made for another table, "
                "make the plan again"
            )


def _entry(bits: tuple[int, ...], i: int) -> int:
    return bits[0] if len(bits) == 1 else bits[i]


def _once(bits: tuple[int, ...]) -> tuple[int, ...]:
    return bits[:1] if len(set(bits)) == 1 else bits
