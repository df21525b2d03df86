"""Modules that model parts build from. Imported by their `build` methods only, since it needs torch.

Shape suffixes: B rows, L tokens, C channels, H W pixels, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class Flatten(nn.Module):
    """Any mix of numbers, vectors, images and categories as one row of floats.

    Categories become one-hot rows, all zeros where missing (-1); missing numbers become 0, their mean.
    """

    def __init__(self, classes: Sequence[int]) -> None:
        super().__init__()
        self.classes = tuple(classes)  # 0: not a category

    def forward(self, *inputs: Tensor) -> Tensor:
        flat = []
        for x, classes in zip(inputs, self.classes, strict=True):
            if classes:
                hot = nn.functional.one_hot(x.clamp_min(0), classes).to(torch.get_default_dtype())
                flat.append(hot * (x >= 0)[:, None])
            else:
                flat.append(x.reshape(len(x), -1).nan_to_num())
        return flat[0] if len(flat) == 1 else torch.cat(flat, 1)


class Mlp(nn.Module):
    """Linear layers with an activation and dropout after each."""

    def __init__(self, classes: Sequence[int], widths: Sequence[int], dropout: float, activation: type[nn.Module]) -> None:
        super().__init__()
        self.flatten = Flatten(classes)
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), activation()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers)
        self.out_features = self.token_features = widths[-1]

    def forward(self, *inputs: Tensor, tokens: bool = False) -> Tensor:
        x_BF = self.flatten(*inputs)
        # one-hot categories come as float32 whatever the precision of the layers
        z_BD = self.layers(x_BF.to(self.layers[0].weight.dtype))
        return z_BD[:, None] if tokens else z_BD


class ConvTrunk(nn.Module):
    """Blocks of 3x3 convolution, group norm and GELU; each but the first halves the image, which is pooled to a fixed grid at the end.

    Group norm, since its result for a row does not depend on which other rows a rank holds.
    """

    def __init__(self, channels_in: int, channels: Sequence[int], grid: int, groups: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for position, width in enumerate(channels):
            blocks += [
                nn.Conv2d(channels_in, width, 3, stride=1 if position == 0 else 2, padding=1),
                nn.GroupNorm(groups, width),
                nn.GELU(),
            ]
            channels_in = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.out_features = channels_in * grid * grid
        self.token_features = channels_in

    def forward(self, x_BCHW: Tensor, tokens: bool = False) -> Tensor:
        map_BCHW = self.blocks(x_BCHW)
        return map_BCHW.flatten(2).transpose(1, 2) if tokens else self.pool(map_BCHW).flatten(1)


class ConvMap(nn.Module):
    """Blocks of 3x3 convolution, group norm and GELU; those after the first halve the image until it is `stride` times smaller."""

    makes_map = True

    def __init__(self, channels_in: int, channels: Sequence[int], stride: int, groups: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for position, width in enumerate(channels):
            step = 2 if 0 < position < stride.bit_length() else 1
            blocks += [nn.Conv2d(channels_in, width, 3, stride=step, padding=1), nn.GroupNorm(groups, width), nn.GELU()]
            channels_in = width
        self.blocks = nn.Sequential(*blocks)
        self.out_features = channels_in

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.blocks(x_BCHW)


class Pool(nn.Module):
    """The mean of a map over its places, how much there is of something, and its maximum, whether there is any: `[B, 2C]`."""

    def forward(self, map_BCHW: Tensor) -> Tensor:
        return torch.cat([map_BCHW.mean((2, 3)), map_BCHW.amax((2, 3))], 1)


class Generator(nn.Module):
    """Noise and one-hot categories to the numbers of an image, flat: neither bounded nor in any unit."""

    def __init__(self, classes: Sequence[int], latent: int, shape: Sequence[int], channels: Sequence[int], groups: int) -> None:
        super().__init__()
        self.latent, self.out_features = latent, math.prod(shape)
        # from the image's size down, rounded up: the sizes that the blocks give
        self.sizes = [[-(-side >> halvings) for side in shape[1:]] for halvings in reversed(range(len(channels)))]
        self.flatten = Flatten(classes) if classes else None
        self.start = nn.Linear(latent + sum(classes), channels[0] * math.prod(self.sizes[0]))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width_in, width, 3, padding=1), nn.GroupNorm(groups, width), nn.GELU())
            for width_in, width in pairwise([channels[0], *channels])
        )
        self.paint = nn.Conv2d(channels[-1], shape[0], 3, padding=1)

    def forward(self, *categories: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is None:
            noise = torch.zeros(len(categories[0]), self.latent, device=categories[0].device)
        told = [noise, self.flatten(*categories)] if self.flatten is not None else [noise]
        x_BCHW = self.start(torch.cat([x.to(self.start.weight.dtype) for x in told], 1)).unflatten(1, (-1, *self.sizes[0]))
        for size, block in zip(self.sizes, self.blocks, strict=True):
            x_BCHW = block(nn.functional.interpolate(x_BCHW, size=size, mode="nearest"))
        return self.paint(x_BCHW).flatten(1)


class Canvas(nn.Module):
    """Any numbers `[B, C*H*W]` as an image with values in 0..1, normalised as images of a column are. Learns and keeps nothing."""

    def __init__(self, shape: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.shape, self.mean, self.std = tuple(shape), tuple(mean), tuple(std)

    def forward(self, x_BD: Tensor) -> Tensor:
        mean, std = (torch.tensor(x, device=x_BD.device)[:, None, None] for x in (self.mean, self.std))
        return (x_BD.float().sigmoid().unflatten(1, self.shape) - mean) / std


class Critic(nn.Module):
    """How real an image looks, and how well it fits the categories it is said to show: one number."""

    def __init__(self, channels_in: int, channels: Sequence[int], grid: int, classes: Sequence[int], spectral: bool) -> None:
        super().__init__()
        made = torch.nn.utils.parametrizations.spectral_norm if spectral else lambda module: module
        blocks: list[nn.Module] = []
        for position, width in enumerate(channels):
            blocks += [made(nn.Conv2d(channels_in, width, 3, stride=1 if position == 0 else 2, padding=1)), nn.LeakyReLU(0.2)]
            channels_in = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(grid)
        width = channels_in * grid * grid
        self.score = made(nn.Linear(width, 1))
        self.flatten = Flatten(classes) if classes else None
        self.fit = made(nn.Linear(sum(classes), width, bias=False)) if classes else None
        self.out_features = 1

    def forward(self, x_BCHW: Tensor, *categories: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype  # looking at a weight would take a step of its spectral norm
        seen_BD = self.pool(self.blocks(x_BCHW.to(dtype))).flatten(1)
        score_B1 = self.score(seen_BD)
        if self.flatten is None or self.fit is None:
            return score_B1
        return score_B1 + (seen_BD * self.fit(self.flatten(*categories).to(dtype))).sum(1, keepdim=True)


class TextEncoder(nn.Module):
    """Token and position embeddings, pre-norm transformer layers, mean over the tokens that are there."""

    def __init__(self, vocab: int, longest: int, width: int, layers: int, heads: int, feedforward: int, dropout: float, pad: int) -> None:
        super().__init__()
        self.pad = pad
        self.token = nn.Embedding(vocab, width, padding_idx=pad)
        self.position = nn.Embedding(longest, width)
        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(width, heads, feedforward, dropout, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.dropout = nn.Dropout(dropout)
        self.out_features = self.token_features = width

    def forward(self, tokens_BL: Tensor, tokens: bool = False) -> Tensor:
        there_BL = tokens_BL != self.pad
        # an empty text attends to its first padding token: a row of nothing but -inf would be NaN
        hidden_BL = ~there_BL
        hidden_BL[:, 0] = False
        x_BLD = self.token(tokens_BL) + self.position.weight[: tokens_BL.shape[1]]
        x_BLD = self.layers(self.dropout(x_BLD), src_key_padding_mask=hidden_BL)
        if tokens:
            return x_BLD
        kept_BL1 = (~hidden_BL)[..., None].to(x_BLD.dtype)
        return (x_BLD * kept_BL1).sum(1) / kept_BL1.sum(1)
