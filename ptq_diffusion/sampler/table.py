"""A sampler's table: all that sampling needs to know of the sampler."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from torch import Tensor

from ptq_diffusion.sampler.dynamic_shift import DynamicShift
from ptq_diffusion.sampler.step import State, Step

FORMAT = 2
"""The version of `Table.to_json`."""
SHIFT = "dynamic_shift"
"""The field that JSON leaves out where there is none."""


@dataclass(frozen=True)
class Table(Sequence[Step]):
    """The steps of a sampler in their order, from t = T down, and what they have in common.

    Args:
        sampler: which one, such as `ddim` or `ddpm`.
        prediction: what m is: `epsilon`, `v_prediction`, `sample` or `flow_prediction`.
        clip: the radius that every step clips x_0 to, or None.
        init_scale: x_T = init_scale z.
        steps: the rows.
        dynamic_shift: of the noise levels by the size of an image; None of levels that no size changes.

    Raises:
        ValueError: a step clips otherwise than the table says.
    """

    sampler: str
    prediction: str
    clip: float | None
    init_scale: float
    steps: tuple[Step, ...]
    dynamic_shift: DynamicShift | None = None

    def __post_init__(self) -> None:
        if odd := [step for step in self.steps if step.clip != self.clip]:
            raise ValueError(
                f"expected steps that all clip x_0 to {self.clip}, got {odd[0].clip} at t = {odd[0].t}; "
                "replace the table's clip with that of its steps"
            )

    def __len__(self) -> int:
        return len(self.steps)

    @overload
    def __getitem__(self, place: int) -> Step: ...
    @overload
    def __getitem__(self, place: slice) -> "Table": ...
    def __getitem__(self, place: int | slice) -> "Step | Table":
        """A step, or the table of some of the steps."""
        return self.with_steps(self.steps[place]) if isinstance(place, slice) else self.steps[place]

    def with_steps(self, steps: Iterable[Step]) -> "Table":
        """The table of the same sampler with other steps."""
        return dataclasses.replace(self, steps=tuple(steps))

    def start(self, z: Tensor) -> State:
        """The state x_T that sampling begins with, from standard normal noise z, (B, C, H, W)."""
        return State(self.init_scale * z, ())

    def at(self, t: float) -> Step:
        """The step at a time, compared in float32, in which tensors of times hold fractional ones.

        Raises:
            ValueError: no step has this time, or two steps have the same.
        """
        steps = {_float32(step.t): step for step in self.with_distinct_times()}
        if _float32(t) not in steps:
            raise ValueError(
                f"expected a time of the table, one of {', '.join(str(step.t) for step in self.steps)}, got {t}; "
                "sample at these times"
            )
        return steps[_float32(t)]

    def with_distinct_times(self) -> "Table":
        """The table itself, for those who find a step by its time.

        Raises:
            ValueError: two steps have the same time.
        """
        if len({_float32(step.t) for step in self.steps}) < len(self.steps):
            times = ", ".join(str(step.t) for step in self.steps)
            raise ValueError(f"expected a table whose times differ, got {times}; make another")
        return self

    def fingerprint(self) -> str:
        """Sixteen hex digits that two tables share only if they are equal."""
        # A time may be whole or a float of the same value, which JSON writes in two ways.
        steps = [dataclasses.asdict(step) | {"t": float(step.t)} for step in self.steps]
        return hashlib.sha256(json.dumps(self.to_json() | {"steps": steps}).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """All fields as values that JSON can hold, a shift where there is one, with the version of this form."""
        fields = {"format": FORMAT} | dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name != SHIFT or value is not None}

    @classmethod
    def from_json(cls, data: object) -> "Table":
        """The table that `to_json` gave, equal to it, also after JSON has made lists of tuples.

        Raises:
            ValueError: another version, or fields that are missing, unknown or of another type.
        """
        names = {"format", *(field.name for field in dataclasses.fields(cls))}
        optional = {SHIFT} if not isinstance(data, Mapping) or SHIFT not in data else set()
        table = _fields(data, names - optional, "a table")
        if table["format"] != FORMAT:
            raise ValueError(f"expected a table in format {FORMAT}, got {table['format']!r}; make it again")
        for name in ("sampler", "prediction"):
            if not isinstance(table[name], str):
                raise ValueError(f"expected the name of a {name} in a table, got {table[name]!r}; make it again")
        clip = None if table["clip"] is None else _number(table["clip"], "clip")
        steps = tuple(_step(row) for row in _list(table["steps"], "steps"))
        shift = _dynamic_shift(table[SHIFT]) if SHIFT in table else None
        scale = _number(table["init_scale"], "init_scale")
        return cls(table["sampler"], table["prediction"], clip, scale, steps, shift)


def _float32(t: float) -> float:
    return float(np.float32(t))


def _dynamic_shift(data: object) -> DynamicShift:
    row = _fields(data, {field.name for field in dataclasses.fields(DynamicShift)}, "a shift")
    return DynamicShift(**{name: _number(value, name) for name, value in row.items()})


def _step(data: object) -> Step:
    row = _fields(data, {field.name for field in dataclasses.fields(Step)}, "a step")
    if type(row["i"]) is not int:
        raise ValueError(f"expected a whole number as i of a step, got {row['i']!r}; make the table again")
    c_0 = tuple(_number(c, "c_0") for c in _list(row["c_0"], "c_0"))
    if not c_0:
        raise ValueError("expected at least one coefficient in c_0 of a step, got none; make the table again")
    optional = {name: row[name] for name in ("clip", "direction", "sigma_high") if row[name] is None}
    numbers = {name: _number(row[name], name) for name in row.keys() - optional.keys() - {"i", "c_0"}}
    return Step(i=row["i"], c_0=c_0, **optional, **numbers)


def _fields(data: object, names: set[str], kind: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping) or set(data) != names:
        fields = ", ".join(sorted(map(str, data))) if isinstance(data, Mapping) else type(data).__name__
        raise ValueError(f"expected {kind} with {', '.join(sorted(names))}, got {fields}; make the table again")
    return data


def _list(data: object, name: str) -> Sequence[object]:
    if not isinstance(data, list | tuple):
        raise ValueError(f"expected a list as {name} of a table, got {type(data).__name__}; make the table again")
    return data


def _number(data: object, name: str) -> float:
    # Compared rather than asked with isfinite, which an int of a thousand digits overflows. NaN is not below either.
    if not isinstance(data, int | float) or isinstance(data, bool) or not abs(data) <= sys.float_info.max:
        raise ValueError(f"expected a finite number as {name} of a table, got {data!r:.40}; make the table again")
    return data
