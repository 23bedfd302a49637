"""Tries random inputs and prints how many of them end in a traceback.

    python -m experiments.fuzz.fuzz 1000 --seed 1 --taken taken.txt

Half of them are options, one of a configuration's at a time; half are files with one change. Nothing is computed, and a
trial that takes longer than a minute of computing is a hang. What is taken is wrong only to a reader: `--taken` writes
those inputs to a file.
"""

import argparse
import os
import resource
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf, open_dict

from experiments.fuzz.inputs import VALUES, Json, Keys, alike, changed, node_at, paths, texts
from experiments.fuzz.trials import begins_only, document, ending, file_trials, option_trial
from ptq_diffusion.command.conf import CONF

TINY = (
    "model=diffusers sampler.steps=3 images=3 seeds=[0] micro_batch=2 calibration.images=2 noise.images=16 "
    "sensitivity.images=4 judging.replicates=2 judging.neighbours=1 runtime.accelerator=cpu runtime.progress=false "
    "logger=none feature=cifar10net"
).split()
CHOICES = (
    ["correction=ptqd"],
    ["correction=auto", "noise.images=16", "trial.images=2"],
    ["sampler=ddpm", "correction=rescaled", "noise.images=16", "bitwidth=budget", "bitwidth.saving=10"],
    ["bitwidth=step_snr", "correction=matched", "feature=pixels", "reference=none"],
    ["range_search@quantizer.activation.range_search=mse", "quantizer@quantizer.weight=affine_per_tensor"],
)
"""Words of the configurations whose options are tried."""
Cases = st.SearchStrategy[tuple[str, Callable[[], object]]]
"""Random inputs as a text that shows one and the trial of it."""
MANY = tuple(HealthCheck)
MEMORY = 16 << 30
"""Bytes that the process may address, so that an input that would fill the machine ends in an error."""


def composed(*words: str) -> Json:
    """The resolved configuration of some words as a dict."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*TINY, *words], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return OmegaConf.to_container(cfg, resolve=True)


def save_model(folder: Path) -> None:
    """A pipeline of a tiny network of random weights."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    widths = {"layers_per_block": 1, "block_out_channels": (8, 16), "attention_head_dim": 8, "norm_num_groups": 4}
    unet = UNet2DModel(sample_size=(8, 8), **blocks, **widths)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)


def tried(cases: Cases, examples: int, number: int, ends: Counter[str], taken: TextIO) -> None:
    """Count the endings of random cases, print what is neither taken nor refused, and write down what is taken."""

    @seed(number)
    @settings(max_examples=examples, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=MANY)
    @given(cases)
    def one(case: tuple[str, Callable[[], object]]) -> None:
        end = ending(case[1])
        ends[end.partition(":")[0]] += 1
        if ends.total() % 100 == 0:
            sys.stdout.write(f"{ends.total()} inputs so far\n")
            sys.stdout.flush()
        if end == "taken":
            taken.write(f"{case[0]}\n")
        if end not in ("taken", "refused"):
            sys.stdout.write(f"{case[0][:300]}\n  {end}\n")
            sys.stdout.flush()

    one()


def option_cases(folder: Path) -> Cases:
    """One option of one of several configurations, with any value."""
    fixed = [f"model.path={folder / 'model'}", f"outputs={folder / 'tried'}"]
    cfgs = [composed(*fixed, *words) for words in CHOICES]
    for cfg, words in zip(cfgs, CHOICES, strict=True):
        if (end := ending(option_trial(cfg))) != "taken":
            raise ValueError(f"expected {' '.join(words)} to begin, got {end}")

    def case(cfg: Json) -> Cases:
        def with_value(path: Keys) -> Cases:
            kind = VALUES | alike(node_at(cfg, path))
            return kind.map(lambda value: (f"{path} = {value!r:.200}", option_trial(changed(cfg, path, value, False))))

        return st.sampled_from(paths(cfg)).flatmap(with_value)

    return st.one_of([case(cfg) for cfg in cfgs])


def file_cases(folder: Path) -> Cases:
    """One file of a finished experiment or its model, with any change; it is whole again afterwards."""
    trials = file_trials(folder / "outputs", folder / "model")

    def case(file: Path) -> Cases:
        whole = file.read_bytes()

        def trial(text: str) -> None:
            file.write_text(text)
            try:
                trials[file]()
            finally:
                file.write_bytes(whole)

        return texts(document(file)).map(lambda text: (f"{file.name}: {text}", lambda: trial(text)))

    return st.one_of([case(file) for file in trials])


def main(examples: int, number: int, taken: TextIO) -> None:
    """Make a tiny experiment in a temporary folder, and try its options and files by a seed."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    folder = Path(tempfile.mkdtemp())
    ends: Counter[str] = Counter()
    try:
        save_model(folder / "model")
        os.chdir(folder)
        words = [f"model.path={folder / 'model'}", f"outputs={folder / 'outputs'}", "correction=ptqd"]
        option_trial(composed(*words))()
        with begins_only():
            tried(option_cases(folder), examples // 2, number, ends, taken)
        tried(file_cases(folder), examples - examples // 2, number, ends, taken)
    finally:
        shutil.rmtree(folder)
    endings = ", ".join(f"{count} {end}" for end, count in ends.most_common())
    sys.stdout.write(f"{sum(ends.values())} inputs: {endings}; {ends['traceback']} tracebacks, {ends['hang']} hangs\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("examples", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--taken", type=argparse.FileType("w", encoding="utf-8"), default=os.devnull)
    words = parser.parse_args()
    main(words.examples, words.seed, words.taken)
