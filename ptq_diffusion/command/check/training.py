"""Checks of trainings, before anything is encoded or trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from diffusers import ModelMixin
from omegaconf import DictConfig

from ptq_diffusion.command.check.bounds import Room, require_trainable
from ptq_diffusion.command.refusal import is_ours
from ptq_diffusion.engine.factory import construct, require_kind
from ptq_diffusion.stage.training.conditioned_network import ConditionedNetwork, LatentNetwork, UnlabelledNetwork
from ptq_diffusion.stage.training.latents import require_names
from ptq_diffusion.stage.training.objective import Objective

PARTS = {"network": object, "scheduler": object, "objective": Objective, "optimizer": torch.optim.Optimizer}
"""The kind of every part of a training that is an object."""
BEGUN = ("objective", "optimizer")
"""Parts that are built when a training has begun, of others."""
OF_LATENTS = {"scheduler", "objective", "ema_decay", "mirrored", "unlabelled_share", "init_from"}
OWN_OPTIONS = {
    "train_denoiser": {"scheduler", "objective", "augmentation", "ema_decay", "init_from"},
    "train_latent_denoiser": OF_LATENTS,
    "latents": OF_LATENTS,
    "train_autoencoder": {"augmentation", "edge_weight", "kl_weight"},
    "train_feature_network": {"augmentation", "label_smoothing"},
}
"""The options that the training of a goal has beside those of all."""
META = torch.device("meta")


def check_training(cfg: DictConfig, room: Room) -> None:
    """Build the parts of a training that have options of their own, the network without its memory.

    The saved model that it begins from, if any, is compared with the network by its configurations: weights are read
    once, when the training begins.

    Raises:
        ValueError: options do not fit each other, or the network does not fit the room, the labels or the saved model.
        FileNotFoundError: there are no data or no saved model.
    """
    training = cfg.training
    for group, goal in (("training", cfg.goal), ("autoencoder", "train_autoencoder")):
        _require_own_options(cfg.get(group) or {}, group, goal)
    for name in filter(training.__contains__, PARTS):
        node = training[name]
        require_kind(node, PARTS[name], f"training.{name}", name in BEGUN or bool(node.get("_partial_")))
        with _without_memory(name):
            part = _built(training, name)
        if name == "network":
            _check_network(cfg, part, room)


def _require_own_options(options: Mapping[str, object], group: str, goal: str) -> None:
    """Refuse options of another kind of training."""
    others = set[str]().union(*OWN_OPTIONS.values()) - OWN_OPTIONS[goal]
    if found := sorted(others & set(options)):
        raise ValueError(f"expected options of {goal}, got {group}.{found[0]}, which it does not read; leave it out")


def _built(training: DictConfig, name: str) -> object:
    part = construct(training[name])
    if name == "optimizer":
        part([torch.nn.Parameter(torch.zeros(1))])
    if name == "objective":
        part(scheduler=construct(training.scheduler))
    return part


def _check_network(cfg: DictConfig, part: object, room: Room) -> None:
    """Refuse a network that the machine cannot train, or that cannot begin as the training says it does."""
    networks = part.keywords.values() if isinstance(part, partial) else [part]
    for network in networks:
        if isinstance(network, torch.nn.Module):
            require_trainable(network, room)
    beginning = cfg.training.get("init_from")
    path = None if beginning is None else beginning.path
    if isinstance(part, partial) and isinstance(part.func, type) and issubclass(part.func, LatentNetwork):
        # Its size depends on the labels of the images.
        names = require_names(construct(cfg.data).label_names())
        with _without_memory("network"):
            whole: ConditionedNetwork = part(names=names)
    elif isinstance(part, ModelMixin):
        whole = UnlabelledNetwork(part)
    elif path is not None:
        raise ValueError(
            f"expected training.init_from.path=null of a training.network of another kind than diffusers' models, got "
            f"{path}; leave it out"
        )
    if path is not None:
        whole.check_beginning(path)


@contextmanager
def _without_memory(name: str) -> Iterator[None]:
    """Builds on the meta device within the context, and says of which part of a training an error is."""
    try:
        with META:
            yield
    # diffusers and torch raise nearly every type of error at options that do not fit each other.
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        if is_ours(error) and text.startswith("expected "):
            raise
        raise ValueError(f"expected training.{name} of options that fit each other, got an error: {text}") from error
