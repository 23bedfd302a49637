"""The preamble of a run: its choices, and the artefacts that are cached, in a few lines."""

from omegaconf import DictConfig, OmegaConf

from ptq_diffusion.engine.factory import plain
from ptq_diffusion.engine.plugins import Plugin
from ptq_diffusion.engine.selection import select
from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.engine.store import Store
from ptq_diffusion.report.stages import goal_stages

PARTS = ("model", "condition", "sampler", "bitwidth", "correction", "feature", "judging", "data")
"""Parts of the configuration that one line each has room for."""
NESTED = {"condition": ("source.path", "guidance.scale")}
"""Options within those of a part that its line shows too."""


def preamble(cfg: DictConfig, store: Store, goal: type[Stage]) -> list[str]:
    """One line for each choice that the goal depends on, and one for the stages that the store holds."""
    needs = [need for last in goal_stages(cfg, goal) for need in store.artefacts(last, cfg).values()]
    part = select(cfg, tuple(dict.fromkeys(key for need in needs for key in need.stage.uses)))
    rows = {key: _row(key, part, cfg) for key in PARTS}
    if "metric" in part:
        rows["metric"] = ", ".join(part.metric)
    if "images" in part:
        count = part.images * len(part.seeds)
        seeds = "1 seed" if len(part.seeds) == 1 else f"{len(part.seeds)} seeds"
        rows["images"] = f"{seeds} x {part.images:,} = {count:,}, {part.micro_batch} at a time"
    if plugins := [Plugin.of(name) for name in store.shop.plugins]:
        rows["plugins"] = ", ".join(f"{one.name} {one.version or 'without a version'} {one.digest}" for one in plugins)
    present = [need.stage.name for need in needs if store.has(need.stage, need.cfg)]
    rows["in the store"] = ", ".join(dict.fromkeys(present)) or "nothing cached yet for this run"
    return [f"{name:<13}{row}" for name, row in rows.items() if row]


def _row(key: str, part: DictConfig, cfg: DictConfig) -> str:
    """The name of a group's file and its plain options; empty where the goal does not depend on it."""
    if key not in part:
        return ""
    options = {name: value for name, value in plain(part[key]).items() if not name.startswith("_")}
    options |= {name: OmegaConf.select(part[key], name) for name in NESTED.get(key, ())}
    values = " ".join(f"{name}={value}" for name, value in options.items() if _is_plain(value))
    return f"{cfg.labels.get(key, '')} {values}".strip()


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float) and value != ""
