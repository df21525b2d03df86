"""Modules that model parts build from. Imported by their `build` methods only, since it needs torch.

Shape suffixes: B rows, L tokens, C channels, H W pixels, D width.
"""

from __future__ import annotations

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
