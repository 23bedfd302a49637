"""`ptq-diffusion [-m] [OVERRIDES]`: experiments that Hydra composes from the words of the command line."""

from collections.abc import Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ptq_diffusion.command.composition import guarded
from ptq_diffusion.command.conf import CONF
from ptq_diffusion.command.refusal import PastHydra


def run_experiments(words: Sequence[str]) -> None:
    """Run what the overrides compose; Hydra reads them from the command line itself.

    Raises:
        ValueError: the words ask for a pickled configuration, the first is no command, or -m stands among overrides.
    """
    if any(word.startswith("--e") for word in words):
        raise ValueError("expected no --experimental-rerun, which reads a pickled file; give the overrides again")
    if words and words[0].isalpha():
        raise ValueError(
            f"expected collect, options, doctor or OPTION=VALUE, got {words[0]!r}; ptq-diffusion --help lists all"
        )
    if _amid_overrides("-m", words) or _amid_overrides("--multirun", words):
        raise ValueError("expected -m in front of all overrides of a sweep, got it among them; move it to the front")
    with guarded():
        experiment()


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def experiment(cfg: DictConfig) -> None:
    """Make the goal of one composed experiment."""
    # Import torch, which the processes of a sweep must not do before Hydra has set their threads.
    from ptq_diffusion.command.experiment import run
    from ptq_diffusion.command.failure import recorded

    job = HydraConfig.get()
    try:
        with recorded(cfg, job):
            run(cfg)
    except Exception as error:
        if job.mode == RunMode.MULTIRUN:
            raise
        raise PastHydra(error) from error


def _amid_overrides(flag: str, words: Sequence[str]) -> bool:
    """Whether there are overrides on both sides of the flag, which argparse cannot read."""
    if flag not in words:
        return False
    place = words.index(flag)
    return all(any("=" in word for word in side) for side in (words[:place], words[place + 1 :]))
