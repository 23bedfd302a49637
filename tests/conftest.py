"""Settings of every test: no network, no display, one thread, and a clear word about a broken torchvision."""

import importlib
import importlib.util
import os

import pytest

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
