"""How well things in pictures are found: mean average precision, as COCO has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.parts import Metric

if TYPE_CHECKING:
    from torch import Tensor

# N pictures, M boxes of a picture, P detections of a picture, T thresholds, R resamples, J detections of one class

_BLOCK = 1 << 22  # numbers of a table that are held at once


class MeanAveragePrecision(Metric):
    """Average precision over recalls 0, 0.01, ... 1, its mean over IoU thresholds 0.5, 0.55, ... 0.95 and over the classes that occur.

    `score` is `[N, P, 6]`: boxes, classes and scores, 0 for none; `target` `[N, M, 5]`: boxes and classes, -1 for none.
    Computed by pycocotools, which torchmetrics calls too, but only beside torchvision.
    Source: Lin et al., Microsoft COCO, ECCV 2014, and its evaluation code.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"boxes"})
    thresholds: ClassVar[tuple[float, ...]] = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    kind: Literal["map"] = "map"

    def compute(self, score: Tensor, target: Tensor, classes: int) -> float:
        """NaN where no picture shows anything."""
        import io
        from contextlib import redirect_stdout

        import numpy as np
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        if not len(target) or not score.isfinite().all() or not (target[..., 4] >= 0).any():
            return float("nan")
        with redirect_stdout(io.StringIO()):  # it says at length what it does
            truth, found = (_coco(COCO(), rows) for rows in (target, score))
            judge = COCOeval(truth, found, "bbox")
            judge.params.iouThrs = np.array(self.thresholds)
            judge.params.areaRng, judge.params.areaRngLbl, judge.params.maxDets = [[0, 1e10]], ["all"], [100]
            judge.evaluate()
            judge.accumulate()
        precision = judge.eval["precision"]
        return float(precision[precision > -1].mean())

    def resampled(self, score: Tensor, target: Tensor, classes: int, count_RN: Tensor) -> Tensor:
        """Detections are matched once, picture by picture; a resample only weighs what they count."""
        import torch

        score, target = score.double(), target.double()
        hit_NPT = self._hits(score, target)
        total_R = torch.zeros(len(count_RN), dtype=torch.float64)
        present_R = torch.zeros_like(total_R)
        for kind in target[..., 4][target[..., 4] >= 0].unique():
            things_R = count_RN.double() @ (target[..., 4] == kind).sum(1).double()
            picture, place = ((score[..., 4] == kind) & (score[..., 5] > 0)).nonzero(as_tuple=True)
            order = score[picture, place, 5].argsort(dim=0, descending=True, stable=True)
            picture, place = picture[order], place[order]
            hit_JT = hit_NPT[picture, place]
            for rows in _blocks(len(count_RN), len(picture)):
                found = self._precision(count_RN[rows][:, picture].double(), hit_JT, things_R[rows])
                total_R[rows] += torch.where(things_R[rows] > 0, found, 0.0)
            present_R += things_R > 0
        return total_R / present_R  # 0 / 0 where nothing was to be seen

    def _hits(self, score: Tensor, target: Tensor) -> Tensor:
        """Which detections are right, `[N, P, T]`: in the order of their scores each takes the free box that it overlaps most."""
        import torch

        from trainer.boxes import overlaps

        least_T = torch.tensor(self.thresholds, dtype=torch.float64)
        iou_NPM, _ = overlaps(score[:, :, None, :4], target[:, None, :, :4])
        same = (score[:, :, None, 4] == target[:, None, :, 4]) & (target[:, None, :, 4] >= 0) & (score[:, :, None, 5] > 0)
        iou_NPM = torch.where(same, iou_NPM, -1.0).flip(2)  # of equal overlaps the last counts
        free_NTM = torch.ones(len(score), len(least_T), target.shape[1], dtype=torch.bool)
        hit_NPT = torch.zeros(*score.shape[:2], len(least_T), dtype=torch.bool)
        pictures = torch.arange(len(score))[:, None]
        order_NP = score[..., 5].argsort(dim=1, descending=True, stable=True)
        for p_N in order_NP.T:
            here_N1M = iou_NPM[pictures[:, 0], p_N][:, None]
            best = torch.where(free_NTM & (here_N1M >= least_T[:, None]), here_N1M, -1.0).max(2)
            hit_NT = best.values >= 0
            hit_NPT[pictures[:, 0], p_N] = hit_NT
            free_NTM.scatter_(2, best.indices[..., None], (free_NTM.gather(2, best.indices[..., None]) & ~hit_NT[..., None]))
        return hit_NPT

    def _precision(self, count_RJ: Tensor, hit_JT: Tensor, things_R: Tensor) -> Tensor:
        """Interpolated precision of one class, its mean over recalls and thresholds, `[R]`."""
        import numpy as np
        import torch

        # numpy's: torch rounds some of them otherwise, and shares of 50 things fall on them
        recall_101 = torch.from_numpy(np.linspace(0, 1, 101)).expand(len(count_RJ), -1).contiguous()
        said_RJ = count_RJ.cumsum(1)
        mean_R = torch.zeros(len(count_RJ), dtype=torch.float64)
        for hit_J in hit_JT.T:
            # precision is highest where a detection is right, so the others need not be looked at
            right_RJ = count_RJ[:, hit_J].cumsum(1)
            precision_RJ = right_RJ / said_RJ[:, hit_J].clamp_min(1)
            best_RJ = torch.nn.functional.pad(precision_RJ.flip(1).cummax(1).values.flip(1), (0, 1)) if hit_J.any() else None
            if best_RJ is not None:
                at = torch.searchsorted(right_RJ / things_R[:, None].clamp_min(1), recall_101)
                mean_R += best_RJ.gather(1, at).mean(1)
        return mean_R / hit_JT.shape[1]


class MeanAveragePrecision50(MeanAveragePrecision):
    """As `map`, at the IoU threshold 0.5 alone: whether things are found, however roughly."""

    thresholds: ClassVar[tuple[float, ...]] = (0.5,)
    kind: Literal["map_50"] = "map_50"  # type: ignore[assignment]


def _coco(made: Any, rows: Tensor) -> Any:
    """Boxes, classes and, where there are six columns, scores in the form of pycocotools."""
    annotations: list[dict[str, Any]] = []
    for picture, things in enumerate(rows.double().tolist()):
        for left, top, right, bottom, kind, *score in things:
            if kind >= 0 and (not score or score[0] > 0):
                box = [left, top, right - left, bottom - top]
                entry = {"id": len(annotations) + 1, "image_id": picture, "category_id": int(kind), "bbox": box, "iscrowd": 0}
                annotations.append(entry | {"area": box[2] * box[3], "score": score[0] if score else 1.0})
    kinds = sorted({entry["category_id"] for entry in annotations})
    made.dataset = {"images": [{"id": n} for n in range(len(rows))], "annotations": annotations, "categories": [{"id": k} for k in kinds]}
    made.createIndex()
    return made


def _blocks(rows: int, width: int) -> Iterator[slice]:
    size = max(1, _BLOCK // max(1, width))
    yield from (slice(start, start + size) for start in range(0, rows, size))
