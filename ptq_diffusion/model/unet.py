"""Unconditional diffusers UNets from a local folder."""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ptq_diffusion.artefact.bundle import Bundles
from ptq_diffusion.model.denoiser import Denoiser
from ptq_diffusion.model.site import Kind, Role, Site

MODELS = Bundles(Path(__file__).parent)
"""The models that come with the package."""


class UNetDenoiser(Denoiser):
    """A `UNet2DModel` and its scheduler's configuration.

    A network with twice as many output as input channels also predicts a variance; m is the first half.

    Args:
        unet: the network, unconditional.
        scheduler_config: the scheduler's configuration.

    Raises:
        ValueError: the network expects class labels, or its channels fit neither case.
    """

    def __init__(self, unet: UNet2DModel, scheduler_config: Mapping[str, Any]) -> None:
        super().__init__()
        config = unet.config
        if config.class_embed_type is not None or config.num_class_embeds is not None:
            raise ValueError("expected an unconditional UNet2DModel, got one with class embeddings; use another model")
        if config.out_channels not in (config.in_channels, 2 * config.in_channels):
            raise ValueError(
                f"expected as many output channels as the {config.in_channels} input channels, or twice as many, "
                f"got {config.out_channels}"
            )
        size = config.sample_size
        if size is None:
            raise ValueError("expected a UNet2DModel with a sample_size; set sample_size in its config.json")
        height, width = (size, size) if isinstance(size, int) else size
        self.unet = unet.eval().requires_grad_(False)
        self.shape = (config.in_channels, height, width)
        self.scheduler_config = dict(scheduler_config)

    @classmethod
    def from_folder(cls, path: str) -> "UNetDenoiser":
        """Load what a diffusers pipeline saved: `unet/` (safetensors only) and `scheduler/`; nothing else is read.

        Args:
            path: the folder, or `bundled:NAME`.

        Raises:
            FileNotFoundError: the folder lacks one of its files.
            ValueError: the network is not a UNet2DModel, its files are broken or do not belong together, or no model of
                this name is bundled.
        """
        folder = MODELS.path(path)
        _require_files(folder)
        kind = _read_json(folder / "unet" / "config.json").get("_class_name")
        if kind != "UNet2DModel":
            raise ValueError(
                f"expected a UNet2DModel in {folder / 'unet'}, got {kind}; other networks are not supported"
            )
        return cls(_load(folder), _read_json(folder / "scheduler" / "scheduler_config.json"))

    @property
    def network(self) -> nn.Module:
        return self.unet

    def predict(self, x_t: Tensor, t: float) -> Tensor:
        # diffusers would cut a number that is no tensor down to a whole time.
        return self.unet(x_t, torch.as_tensor(t)).sample[:, : self.shape[0]]

    def with_network(self, network: nn.Module) -> "UNetDenoiser":
        return UNetDenoiser(network, self.scheduler_config)

    def sites(self) -> Sequence[Site]:
        macs = _conv_and_linear_macs(self.unet, self.shape)
        layers = dict(_layers(self.unet))
        return [
            Site(name, _kind(layer), _role(name), macs[name], tuple(layer.weight.shape))
            for name, layer in layers.items()
        ]

    def attention_macs(self) -> int:
        meta = copy.deepcopy(self.unet).to("meta")
        # On the CPU the counter misses fused attention; on the meta device it counts it.
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            meta(torch.zeros(1, *self.shape), torch.zeros(1))
        return counter.get_total_flops() // 2 - sum(_conv_and_linear_macs(self.unet, self.shape).values())


def folder_checksum(path: str) -> str:
    """Sixteen hex digits over the weights and configurations of a model folder, or of `bundled:NAME`."""
    folder = MODELS.path(path)
    _require_files(folder)
    digest = hashlib.sha256()
    for file in _files(folder):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _files(folder: Path) -> list[Path]:
    weights = sorted((folder / "unet").glob("*.safetensors"))
    return [folder / "unet" / "config.json", folder / "scheduler" / "scheduler_config.json", *weights]


def _require_files(folder: Path) -> None:
    files = _files(folder)
    missing = [str(file.relative_to(folder)) for file in files if not file.is_file()]
    if len(files) < 3:
        missing.append("unet/*.safetensors")
    if missing:
        raise FileNotFoundError(
            f"expected a folder that a diffusers pipeline saved, {folder} lacks {', '.join(missing)}; "
            "save one with pipeline.save_pretrained(folder, safe_serialization=True)"
        )


def _load(folder: Path) -> UNet2DModel:
    """The network, with all of its weights from the folder."""
    try:
        unet, found = UNet2DModel.from_pretrained(
            folder,
            subfolder="unet",
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    # Whatever diffusers trips over is in the two files, and it raises nearly every type of error.
    except Exception as error:
        raise ValueError(
            f"expected a network and its weights in {folder / 'unet'}, got files that are broken or do not belong "
            f"together ({' '.join(str(error).split())[:300]}); save the pipeline again"
        ) from error
    if odd := [*found["missing_keys"], *found["unexpected_keys"]]:
        raise ValueError(
            f"expected the weights of the network that {folder / 'unet' / 'config.json'} describes, got those of "
            f"another: {odd[0]} and {len(odd) - 1} more have no counterpart; save the pipeline again"
        )
    for name, weight in unet.named_parameters():
        if not torch.isfinite(weight).all():
            raise ValueError(
                f"expected finite weights in {folder / 'unet'}, got NaN or infinity in {name}; train it anew"
            )
    return unet


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"expected JSON in {path}, got something else ({error}); save the pipeline again") from error
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object in {path}, got {type(found).__name__}; save the pipeline again")
    return found


def _layers(network: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    return ((name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear))


def _kind(layer: nn.Module) -> Kind:
    return Kind.CONV2D if isinstance(layer, nn.Conv2d) else Kind.LINEAR


def _role(name: str) -> Role:
    return {"conv_in": Role.FIRST, "conv_out": Role.LAST}.get(name, Role.INNER)


def _conv_and_linear_macs(network: nn.Module, shape: Sequence[int]) -> dict[str, int]:
    """MACs of every layer: each output element takes as many as one filter has weights."""
    macs: dict[str, int] = {}

    def count(name: str, layer: nn.Conv2d | nn.Linear, output: Tensor) -> None:
        macs[name] = macs.get(name, 0) + output.numel() * layer.weight[0].numel()

    hooks = [
        layer.register_forward_hook(lambda layer, _, output, name=name: count(name, layer, output))
        for name, layer in _layers(network)
    ]
    with torch.no_grad():
        network(torch.zeros(1, *shape), torch.zeros(1))
    for hook in hooks:
        hook.remove()
    return macs
