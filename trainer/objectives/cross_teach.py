"""Peers that label unlabelled rows for each other.

Source: co-training, Blum & Mitchell, COLT 1998; with networks Chen et al., Semi-Supervised Semantic Segmentation with Cross Pseudo
Supervision, CVPR 2021; the threshold is that of Sohn et al., FixMatch, NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trainer.objectives.peers import Taught
from trainer.parts import View

if TYPE_CHECKING:
    from torch import Tensor

# B rows, K classes


class CrossTeach(Taught):
    """Cross-entropy of the learner with the class that its teachers agree on with confidence, over rows without a label.

    Rows of which the teachers are not sure add nothing to the loss, and count all the same: the pressure grows with their confidence.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"category"})
    takes_target: ClassVar[bool | None] = None

    kind: Literal["cross_teach"] = "cross_teach"
    teachers: list[str] = Field(min_length=1, description="Tasks of the same classes; the mean of their probabilities labels rows.")
    confidence: float = Field(0.9, ge=0, lt=1, description="Least probability of a label.")

    def taught_by(self) -> list[str]:
        """The teachers."""
        return self.teachers

    def rows(self, columns: Mapping[str, Tensor], target: str | None) -> Tensor:
        """Rows whose target is missing; all where the task names none."""
        import torch

        return super().rows(columns, target) if target is None else (columns[target] < 0).sum(dtype=torch.float32)

    def loss(self, view: View) -> Tensor:
        """Float32 whatever the precision of the logits."""
        import torch

        mean_BK = sum(view.output(t).detach().float().softmax(-1) for t in self.teachers) / len(self.teachers)
        sure_B, label_B = mean_BK.max(-1)  # type: ignore[union-attr]
        wanted_B = sure_B >= self.confidence
        target = view.target
        if target is not None:
            wanted_B &= target < 0
        return torch.nn.functional.cross_entropy(
            view.output(self.learner).float(), label_B.masked_fill(~wanted_B, -1), ignore_index=-1, reduction="sum"
        )
