"""Settings of every test: no network, no display, one thread, and a clear word about a broken torchvision.

Fixtures: configurations composed as the command does it, and folders of tiny models saved by stock diffusers.
"""

import contextlib
import gc
import importlib
import importlib.util
import os
import sys
from pathlib import Path

import pytest

# OpenVINO imports absl where it is installed, whose log handler ends by closing the stream that was stderr when it was
# made, unless that is the process's own: within a test it would be pytest's.
with contextlib.redirect_stderr(sys.__stderr__), contextlib.suppress(ImportError):
    importlib.import_module("absl.logging")

pytest_plugins = ["tests.experiments", "tests.metric.clip", "tests.own_package", "tests.processes", "tests.shortcuts"]

# Imports and compositions make tens of thousands of objects, of which hardly any are garbage in cycles.
gc.set_threshold(20_000, 10, 10)

os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"


def pytest_configure() -> None:
    """Stop before lightning, diffusers and torchmetrics meet a torchvision that does not import."""
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except Exception as error:
            raise pytest.UsageError(
                f"torchvision is installed but cannot be imported ({type(error).__name__}: {error}), and lightning, "
                "diffusers and torchmetrics break on it; uninstall torchvision (it is not needed) or install the build "
                "that matches torch"
            ) from error
    import torch

    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Leave what is imported and collected out of every later search for garbage: it stays until the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def composed():
    """From overrides such as `+correction=ptqd` to the configuration that Hydra composes from conf/."""
    from hydra import compose, initialize_config_dir

    from ptq_diffusion.main import CONF

    def make(*overrides):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(overrides=list(overrides))

    return make


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory):
    """A factory of folders as `DDPMPipeline.save_pretrained` writes them, one for each set of arguments.

    The network is a stock UNet2DModel with random weights and attention in its middle and at half resolution.
    """
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    folders = {}

    def make(prediction_type="epsilon", channels=3, size=(8, 8), out_channels=None, classes=None) -> Path:
        key = (prediction_type, channels, size, out_channels, classes)
        if key in folders:
            return folders[key]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            unet = UNet2DModel(
                sample_size=size,
                in_channels=channels,
                out_channels=out_channels or channels,
                layers_per_block=1,
                block_out_channels=(8, 16),
                down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=8,
                norm_num_groups=4,
                num_class_embeds=classes,
            )
        folders[key] = tmp_path_factory.mktemp("model")
        DDPMPipeline(unet, DDPMScheduler(prediction_type=prediction_type)).save_pretrained(folders[key])
        return folders[key]

    return make


@pytest.fixture(scope="session")
def gaussian_law():
    """From a linear denoiser and a table to the mean and the standard deviation of x_0, exact, without sampling."""
    import torch

    def law(denoiser, steps):
        mean, variance = 0.0, 1.0
        for step in steps:
            at_zero, at_one = (float(denoiser.predict(torch.tensor(x).double(), step).m) for x in (0.0, 1.0))
            slope = step.carry + step.gain * (at_one - at_zero)
            mean, variance = slope * mean + step.gain * at_zero, slope**2 * variance + step.sigma**2
        return mean, variance**0.5

    return law
