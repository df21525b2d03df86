"""Boxes in pictures: how two of them overlap, the heat map that a network learns them from, and the way back.

Boxes are `[left, top, right, bottom]` in shares of the picture's width and height, so that they don't depend on how large
the picture or the map is.

Shape suffixes: B pictures, M boxes of a picture, C channels, K classes, H W cells of the map, P detections of a picture.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.errors import LaunchError

_PRIOR = 0.1
"""Share of cells that an untrained heat map takes for a centre (Lin et al., Focal Loss for Dense Object Detection, ICCV 2017)."""
_SIDE = 0.2
"""Side of a box that an untrained head sees."""


class CentreHead(nn.Module):
    """Heat map, sizes and offsets from a map of features: each a 3x3 and a 1x1 convolution.

    Returns `[B, K + 4, H, W]`: logits of centres by class, of width and height in shares of the picture, and of where in
    its cell (x, y) the centre is.
    """

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        branch = lambda out: nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, out, 1))  # noqa: E731
        self.heat, self.size, self.offset = branch(classes), branch(2), branch(2)
        for part, share in ((self.heat, _PRIOR), (self.size, _SIDE), (self.offset, 0.5)):
            last = part[2]
            assert isinstance(last, nn.Conv2d)
            nn.init.normal_(last.weight, std=0.01)
            nn.init.constant_(last.bias, float(torch.logit(torch.tensor(share, device="cpu"))))  # type: ignore[arg-type]

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """All three, one after the other."""
        if map_BCHW.dim() != 4:
            shape = "x".join(map(str, map_BCHW.shape[1:]))
            raise LaunchError.at("objective 'detection'", f"the model makes {shape} of a picture, not a map", "use a model that makes maps")
        return torch.cat([self.heat(map_BCHW), self.size(map_BCHW), self.offset(map_BCHW)], 1)


def area(box: Tensor) -> Tensor:
    """Areas `[...]` of boxes `[..., 4]`; 0 where right is left of left."""
    return (box[..., 2:] - box[..., :2]).clamp_min(0).prod(-1)


def overlaps(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union of boxes `[..., 4]`, and their unions; 0 where both are empty."""
    inner = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp_min(0).prod(-1)
    union = area(one) + area(other) - inner
    return inner / union.clamp_min(torch.finfo(union.dtype).tiny), union


def giou_loss(one: Tensor, other: Tensor) -> Tensor:
    """1 - GIoU, 0 to 2, of boxes `[..., 4]`.

    Source: Rezatofighi et al., Generalized Intersection over Union, CVPR 2019.
    """
    iou, union = overlaps(one, other)
    hull = (torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2])).clamp_min(0).prod(-1)
    return 1 - iou + (hull - union) / hull.clamp_min(torch.finfo(hull.dtype).tiny)


def radius(width: Tensor, height: Tensor, overlap: float) -> Tensor:
    """How far both corners of a box may be off, in any way, for its IoU with the box not to fall below `overlap`.

    Source: Law & Deng, CornerNet, ECCV 2018, section 3.2; here with the right roots of the three quadratic equations.
    """
    sides, product = width + height, width * height
    moved = (sides - (sides**2 - 4 * product * (1 - overlap) / (1 + overlap)).clamp_min(0).sqrt()) / 2
    smaller = (sides - (sides**2 - 4 * product * (1 - overlap)).clamp_min(0).sqrt()) / 4
    larger = (-sides + (sides**2 + 4 * product * (1 - overlap) / overlap).sqrt()) / 4
    return torch.minimum(torch.minimum(moved, smaller), larger)


def cells(target_BM5: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which boxes there are `[B, M]` bool, and the column and row `[B, M]` of the cell that the centre of each is in."""
    centre = (target_BM5[..., :2] + target_BM5[..., 2:4]) / 2
    column, row = (centre * centre.new_tensor([width, height])).long().unbind(-1)
    return target_BM5[..., 4] >= 0, column.clamp(0, width - 1), row.clamp(0, height - 1)


def heat_map(target_BM5: Tensor, classes: int, height: int, width: int, overlap: float) -> Tensor:
    """What the heat map is to be, `[B, K, H, W]`: 1 in the cell of a centre, falling off around it as a Gaussian; of several the highest.

    Source: Zhou et al., Objects as Points, 2019, section 3. The Gaussian isn't cut off at its radius, three deviations.
    """
    there, column, row = cells(target_BM5, height, width)
    sides = (target_BM5[..., 2:4] - target_BM5[..., :2]) * target_BM5.new_tensor([width, height])
    deviation = (2 * radius(sides[..., 0], sides[..., 1], overlap) + 1) / 6
    away_BMW = torch.arange(width, device=target_BM5.device) - column[..., None]
    away_BMH = torch.arange(height, device=target_BM5.device) - row[..., None]
    square_BMHW = away_BMH[..., :, None] ** 2 + away_BMW[..., None, :] ** 2
    peak_BMHW = torch.exp(-square_BMHW / (2 * deviation[..., None, None] ** 2)) * there[..., None, None]
    place = target_BM5[..., 4].long().clamp_min(0)[..., None].expand(-1, -1, height * width)
    heat = peak_BMHW.new_zeros(len(target_BM5), classes, height * width)
    return heat.scatter_reduce(1, place, peak_BMHW.flatten(2), "amax").view(-1, classes, height, width)


def focal_loss(logit: Tensor, heat: Tensor, alpha: float = 2.0, beta: float = 4.0) -> Tensor:
    """Penalty-reduced focal loss of each cell: where `heat` is 1, how sure the network is not; elsewhere, less near centres.

    Source: Zhou et al., Objects as Points, 2019, equation 1, after Law & Deng, CornerNet, ECCV 2018.
    """
    p = logit.sigmoid()
    hit = -((1 - p) ** alpha) * functional.logsigmoid(logit)
    miss = -((1 - heat) ** beta) * p**alpha * functional.logsigmoid(-logit)
    return torch.where(heat == 1, hit, miss)


def boxes_at(output_BCHW: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """The boxes `[B, M, 4]` that a head sees at cells `[B, M]`, in shares of the picture."""
    height, width = output_BCHW.shape[2:]
    place = (row * width + column)[:, None].expand(-1, 4, -1)
    size_x, size_y, inside_x, inside_y = output_BCHW[:, -4:].flatten(2).gather(2, place).sigmoid().unbind(1)
    x, y = (column + inside_x) / width, (row + inside_y) / height
    return torch.stack([x - size_x / 2, y - size_y / 2, x + size_x / 2, y + size_y / 2], -1)


def peaks(output_BCHW: Tensor, most: int) -> Tensor:
    """The detections of a head's output, best first: `[B, P, 6]` box, class, score. P is `most`, or all cells of a small map.

    A cell that is not the highest among its neighbours in the map of its class gets no detection: score 0.
    Source: Zhou et al., Objects as Points, 2019, section 4.
    """
    logit = output_BCHW[:, :-4]
    width = logit.shape[3]
    highest = functional.max_pool2d(logit, 3, stride=1, padding=1) == logit
    score = (logit.sigmoid() * highest).flatten(1)
    found = score.topk(min(most, score.shape[1]))
    kind, cell = found.indices // (logit.shape[2] * width), found.indices % (logit.shape[2] * width)
    box = boxes_at(output_BCHW, cell % width, cell // width).clamp(0, 1)
    return torch.cat([box, kind[..., None], found.values[..., None]], -1)
