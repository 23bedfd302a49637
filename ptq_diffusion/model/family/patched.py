"""Families whose networks cut a state into patches, of which each is a token."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ptq_diffusion.model.family.family import Family
from ptq_diffusion.model.family.state_size import require_channels, sides


class PatchedFamily(Family):
    """Transformers over patches of p x p latent pixels, in rows, whose output layer is linear.

    Its output of one token holds the pixels of a patch in rows, the channels of a pixel side by side: (p, p, C').
    """

    def shape(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        kind = self.network_class.__name__
        height, width = sides(config, kind)
        side = config["patch_size"]
        if height != width:
            raise ValueError(
                f"expected a square sample_size, for which a {kind} has places, got {height}x{width}; mend it in its "
                "config.json"
            )
        if height % side:
            raise ValueError(
                f"expected a sample_size that is a multiple of patch_size = {side}, got {height}x{width}; mend both in "
                "the network's config.json"
            )
        return require_channels(config), height, width

    def patch_size(self, config: Mapping[str, Any]) -> int:
        return config["patch_size"]

    def features(self, inputs: Tensor, size: tuple[int, int], config: Mapping[str, Any]) -> Tensor:
        side = self.patch_size(config)
        return inputs.transpose(1, 2).unflatten(2, (size[0] // side, size[1] // side))

    def unpatched(self, patches: Tensor, config: Mapping[str, Any]) -> Tensor:
        side = self.patch_size(config)
        pixels = patches.unflatten(1, (side, side, -1))
        # (B, p, p', C', H/p, W/p) to (B, C', H/p, p, W/p, p').
        return pixels.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)
