"""The original latent-diffusion networks restated over a flat dictionary of tensors, as the oracle of conversions.

Tensors are made at random when they are first read, under the original names, so that a network's dictionary is what
its forward reads.
"""

import math

import torch
from torch.nn import functional as F


class Original:
    def __init__(self, prefix, seed=0):
        self.state, self.prefix = {}, prefix
        self.draw = torch.Generator().manual_seed(seed)

    def tensor(self, name, *shape):
        name = self.prefix + name
        if name not in self.state:
            scale = 1.0 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5
            self.state[name] = torch.randn(shape, generator=self.draw) * scale
        assert self.state[name].shape == shape
        return self.state[name]

    def conv(self, name, x, out, size=3, stride=1, padding=None):
        weight = self.tensor(f"{name}.weight", out, x.shape[1], size, size)
        padding = size // 2 if padding is None else padding
        return F.conv2d(x, weight, self.tensor(f"{name}.bias", out), stride, padding)

    def linear(self, name, x, out, bias=True):
        weight = self.tensor(f"{name}.weight", out, x.shape[-1])
        return F.linear(x, weight, self.tensor(f"{name}.bias", out) if bias else None)

    def norm(self, name, x, eps=1e-5):
        channels = x.shape[1]
        return F.group_norm(x, 32, self.tensor(f"{name}.weight", channels), self.tensor(f"{name}.bias", channels), eps)

    def layer_norm(self, name, x):
        width = x.shape[-1]
        return F.layer_norm(x, (width,), self.tensor(f"{name}.weight", width), self.tensor(f"{name}.bias", width))


def attention(q, k, v, heads):
    """(B, L, C) each, to (B, L, C)."""
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


class OriginalUNet(Original):
    def __init__(self, settings):
        super().__init__("model.diffusion_model.")
        self.settings = settings

    def __call__(self, x, t, context=None):
        s = self.settings
        half = s.model_channels // 2
        angles = t[:, None].float() * torch.exp(-torch.arange(half) * (torch.log(torch.tensor(1e4)) / half))
        time = torch.cat([angles.cos(), angles.sin()], 1)
        width = 4 * s.model_channels
        time = self.linear("time_embed.2", F.silu(self.linear("time_embed.0", time, width)), width)
        skips = [self.conv("input_blocks.0.0", x, s.model_channels)]
        for level, channels in enumerate(s.channels):
            for _ in range(s.num_res_blocks):
                name = f"input_blocks.{len(skips)}"
                h = self.resnet(f"{name}.0", skips[-1], time, channels)
                skips.append(self.attend(f"{name}.1", h, context) if s.attends(level) else h)
            if level < len(s.channels) - 1:
                name = f"input_blocks.{len(skips)}.0"
                if s.resblock_updown:
                    skips.append(self.resnet(name, skips[-1], time, channels, lambda x: F.avg_pool2d(x, 2)))
                else:
                    skips.append(self.conv(f"{name}.op", skips[-1], channels, stride=2))
        h = self.resnet("middle_block.0", skips[-1], time, channels)
        h = self.resnet("middle_block.2", self.attend("middle_block.1", h, context), time, channels)
        place = 0
        for level in reversed(range(len(s.channels))):
            for block in range(s.num_res_blocks + 1):
                name = f"output_blocks.{place}"
                h = self.resnet(f"{name}.0", torch.cat([h, skips.pop()], 1), time, s.channels[level])
                h = self.attend(f"{name}.1", h, context) if s.attends(level) else h
                if level and block == s.num_res_blocks:
                    h = self.grown(f"{name}.{1 + s.attends(level)}", h, time)
                place += 1
        return self.conv("out.2", F.silu(self.norm("out.0", h)), s.out_channels)

    def grown(self, name, h, time):
        def double(x):
            return F.interpolate(x, scale_factor=2)

        if self.settings.resblock_updown:
            return self.resnet(name, h, time, h.shape[1], double)
        return self.conv(f"{name}.conv", double(h), h.shape[1])

    def resnet(self, name, x, time, out, resize=lambda x: x):
        h = self.conv(f"{name}.in_layers.2", resize(F.silu(self.norm(f"{name}.in_layers.0", x))), out)
        scaled = self.settings.use_scale_shift_norm
        shift = self.linear(f"{name}.emb_layers.1", F.silu(time), 2 * out if scaled else out)[:, :, None, None]
        if scaled:
            scale, shift = shift.chunk(2, 1)
            h = self.norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = self.norm(f"{name}.out_layers.0", h + shift)
        x = resize(x)
        x = self.conv(f"{name}.skip_connection", x, out, 1) if x.shape[1] != out else x
        return x + self.conv(f"{name}.out_layers.3", F.silu(h), out)

    def attend(self, name, x, context):
        channels = x.shape[1]
        heads = self.settings.heads(channels)
        if self.settings.use_spatial_transformer:
            return self.transformer(name, x, context, heads)
        h = self.norm(f"{name}.norm", x).flatten(2)
        weight = self.tensor(f"{name}.qkv.weight", 3 * channels, channels, 1)
        qkv = F.conv1d(h, weight, self.tensor(f"{name}.qkv.bias", 3 * channels)).transpose(1, 2)
        by_head = qkv.unflatten(2, (heads, 3, -1))
        h = attention(*(by_head[:, :, :, part].flatten(2) for part in range(3)), heads).transpose(1, 2)
        weight = self.tensor(f"{name}.proj_out.weight", channels, channels, 1)
        return x + F.conv1d(h, weight, self.tensor(f"{name}.proj_out.bias", channels)).reshape(x.shape)

    def transformer(self, name, x, context, heads):
        channels = x.shape[1]
        h = self.conv(f"{name}.proj_in", self.norm(f"{name}.norm", x, 1e-6), channels, 1)
        rows = h.flatten(2).transpose(1, 2)
        for depth in range(self.settings.transformer_depth):
            block = f"{name}.transformer_blocks.{depth}"
            for layer, keys in (("1", None), ("2", context)):
                normed = self.layer_norm(f"{block}.norm{layer}", rows)
                sources = (normed, normed if keys is None else keys, normed if keys is None else keys)
                pairs = zip("qkv", sources, strict=True)
                parts = [
                    self.linear(f"{block}.attn{layer}.to_{p}", source, channels, bias=False) for p, source in pairs
                ]
                rows = rows + self.linear(f"{block}.attn{layer}.to_out.0", attention(*parts, heads), channels)
            hidden = self.linear(f"{block}.ff.net.0.proj", self.layer_norm(f"{block}.norm3", rows), 8 * channels)
            value, gate = hidden.chunk(2, 2)
            rows = rows + self.linear(f"{block}.ff.net.2", value * F.gelu(gate), channels)
        return x + self.conv(f"{name}.proj_out", rows.transpose(1, 2).reshape(x.shape), channels, 1)


class OriginalFirstStage(Original):
    """An autoencoder of levels of these channels, one block each on the way down; VQ where it has a codebook."""

    def __init__(self, channels, latent, codebook):
        super().__init__("first_stage_model.")
        self.channels, self.latent, self.codebook = channels, latent, codebook
        self.encode(torch.zeros(1, 3, 2 ** (len(channels) + 2), 2 ** (len(channels) + 2)))

    def encode(self, x):
        h = self.conv("encoder.conv_in", x, self.channels[0])
        for level, channels in enumerate(self.channels):
            h = self.block(f"encoder.down.{level}.block.0", h, channels)
            if level < len(self.channels) - 1:
                h = self.conv(f"encoder.down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), channels, 3, 2, 0)
        width = self.latent if self.codebook else 2 * self.latent
        h = F.silu(self.norm("encoder.norm_out", self.middle("encoder.mid", h), 1e-6))
        return self.conv("quant_conv", self.conv("encoder.conv_out", h, width), width, 1)

    def decode(self, z):
        if self.codebook:
            codes = self.tensor("quantize.embedding.weight", self.codebook, self.latent)
            rows = z.permute(0, 2, 3, 1).flatten(0, 2)
            z = codes[torch.cdist(rows, codes).argmin(1)].reshape(z.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        h = self.conv("decoder.conv_in", self.conv("post_quant_conv", z, self.latent, 1), self.channels[-1])
        h = self.middle("decoder.mid", h)
        for level in reversed(range(len(self.channels))):
            for block in range(2):
                h = self.block(f"decoder.up.{level}.block.{block}", h, self.channels[level])
            if level:
                grown = F.interpolate(h, scale_factor=2)
                h = self.conv(f"decoder.up.{level}.upsample.conv", grown, self.channels[level])
        return self.conv("decoder.conv_out", F.silu(self.norm("decoder.norm_out", h, 1e-6)), 3)

    def middle(self, name, h):
        channels = h.shape[1]
        h = self.block(f"{name}.block_1", h, channels)
        normed = self.norm(f"{name}.attn_1.norm", h, 1e-6)
        parts = [
            self.conv(f"{name}.attn_1.{letter}", normed, channels, 1).flatten(2).transpose(1, 2) for letter in "qkv"
        ]
        mixed = attention(*parts, heads=1).transpose(1, 2).reshape(h.shape)
        return self.block(f"{name}.block_2", h + self.conv(f"{name}.attn_1.proj_out", mixed, channels, 1), channels)

    def block(self, name, x, out):
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x, 1e-6)), out)
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h, 1e-6)), out)
        return (self.conv(f"{name}.nin_shortcut", x, out, 1) if x.shape[1] != out else x) + h
