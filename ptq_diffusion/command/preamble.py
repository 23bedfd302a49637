"""What a run is about to do, in a few lines."""

from collections.abc import Iterator

from omegaconf import DictConfig

from ptq_diffusion.engine.factory import plain
from ptq_diffusion.engine.selection import select
from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.engine.store import Store


def choices(cfg: DictConfig, store: Store, goal: type[Stage]) -> list[str]:
    """One line for each choice that the goal depends on, and one for what the store has of it."""
    stages = list(dict.fromkeys(needed(goal)))
    given = select(cfg, tuple(dict.fromkeys(key for stage in stages for key in stage.uses)))
    rows = {key: _row(key, given, cfg) for key in ("model", "sampler", "bitwidth", "correction", "metric", "data")}
    if "images" in given:
        count = given.images * len(given.seeds)
        rows["images"] = f"{len(given.seeds)} seeds x {given.images:,} = {count:,}, {given.micro_batch} at a time"
    present = [stage.name for stage in stages if store.has(stage, cfg)]
    rows["in the store"] = ", ".join(present) or "nothing of it"
    return [f"{name:<13}{row}" for name, row in rows.items() if row]


def needed(goal: type[Stage]) -> Iterator[type[Stage]]:
    """Every stage on the way to a goal, earliest first; some come more than once."""
    for stage in goal.needs:
        yield from needed(stage)
    yield goal


def _row(key: str, given: DictConfig, cfg: DictConfig) -> str:
    """The name of a group's file and its plain options; empty where the goal does not depend on it."""
    if key not in given:
        return ""
    options = {name: value for name, value in plain(given[key]).items() if not name.startswith("_")}
    shown = " ".join(f"{name}={value}" for name, value in options.items() if _is_plain(value))
    return f"{cfg.labels.get(key, '')} {shown}".strip()


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float)
