"""Boxes and classes of the things in a picture, without anchors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from trainer.parts import Objective, Site

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

# B pictures, M boxes of a picture at most, K classes, P detections of a picture, H W cells of the map


class Detection(Objective):
    """Things as points: a heat map of their centres, and at each centre the size of the box and where in its cell it is.

    Of each picture the penalty-reduced focal loss of the heat map, over its number of things, and the mean of 1 - GIoU over its boxes.
    Sources: Zhou, Wang & Krähenbühl, Objects as Points, 2019; Rezatofighi et al., Generalized Intersection over Union, CVPR 2019.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"boxes"})
    counts_rows: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("map", "map_50")
    takes_maps: ClassVar[bool | None] = True

    kind: Literal["detection"] = "detection"
    width: int = Field(64, ge=1, le=2**16, description="Channels of the head's hidden layers.")
    box_weight: float = Field(2.0, ge=0, description="Weight of the boxes beside the heat map.")
    min_overlap: float = Field(0.7, gt=0, lt=1, description="A box this near to the right one (IoU) is hardly punished in the heat map.")
    most: int = Field(32, ge=1, le=100, description="Things that are found in a picture at most.")
    least_score: float = Field(0.1, ge=0, lt=1, description="Detections below this score are left out of predictions. Metrics see all.")

    def head(self, site: Site) -> nn.Module:
        """Heat map, sizes and offsets on the model's map."""
        from trainer.boxes import CentreHead

        assert site.model is not None  # of a checked document
        assert site.target is not None
        return CentreHead(site.widths[site.model], self.width, len(site.columns[site.target]["classes"]))

    def count(self, target: Tensor) -> Tensor:
        """Pictures whose boxes are known, also those without any."""
        import torch

        return (~target[:, 0, 4].isnan()).sum(dtype=torch.float32)

    def total(self, output_BK: Tensor, target: Tensor) -> Tensor:
        """Sum over pictures, float32. `output_BK` is `[B, K + 4, H, W]`, `target` `[B, M, 5]` box and class, class -1 for no box."""
        import torch

        from trainer import boxes

        output_BCHW = output_BK.float()
        known_B = ~target[:, 0, 4].isnan()
        target = torch.where(target.isnan(), -1.0, target)
        height, width = output_BCHW.shape[2:]
        there, column, row = boxes.cells(target, height, width)
        heat = boxes.heat_map(target, output_BCHW.shape[1] - 4, height, width, self.min_overlap)
        things_B = there.sum(1).clamp_min(1)
        focal_B = boxes.focal_loss(output_BCHW[:, :-4], heat).flatten(1).sum(1) / things_B
        apart_BM = boxes.giou_loss(boxes.boxes_at(output_BCHW, column, row), target[..., :4])
        apart_B = torch.where(there, apart_BM, 0.0).sum(1) / things_B
        return torch.where(known_B, focal_B + self.box_weight * apart_B, 0.0).sum()

    def predict(self, output_BK: Tensor) -> Tensor:
        """Detections `[B, P, 6]`, best first: box in shares of the picture, class, score; 0 where there are no more."""
        from trainer.boxes import peaks

        return peaks(output_BK.float(), self.most)

    def say(self, scores: np.ndarray, columns: Mapping[str, Mapping[str, Any]], target: str | None) -> list[Any]:
        """Lists of `{"box": [left, top, right, bottom], "label": class, "score": 0 to 1}` in the units of the source, best first."""
        fitted = columns[target or ""]
        height, width = fitted["size"]
        return [
            [
                {
                    "box": [left * width, top * height, right * width, bottom * height],
                    "label": fitted["classes"][int(kind)],
                    "score": score,
                }
                for left, top, right, bottom, kind, score in picture
                if score > 0 and score >= self.least_score
            ]
            for picture in scores.tolist()
        ]
