"""Cross-entropy of a categorical target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from trainer.parts import Objective

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropy(Objective):
    """Negative log-likelihood of the right class, summed over rows that have one (target >= 0)."""

    targets: ClassVar[frozenset[str]] = frozenset({"category"})
    counts_rows: ClassVar[bool] = True

    kind: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread over all classes (Szegedy et al., CVPR 2016).")

    def outputs(self, target: Mapping[str, Any]) -> int:
        """One logit a class."""
        return len(target["classes"])

    def count(self, target: Tensor) -> Tensor:
        """Rows with a class."""
        import torch

        return (target >= 0).sum(dtype=torch.float32)

    def total(self, output_BK: Tensor, target: Tensor) -> Tensor:
        """Sum of the loss; float32 whatever the precision of the logits."""
        import torch

        return torch.nn.functional.cross_entropy(
            output_BK.float(), target, ignore_index=-1, reduction="sum", label_smoothing=self.label_smoothing
        )

    def predict(self, output_BK: Tensor) -> Tensor:
        """Probabilities `[B, K]`."""
        return output_BK.float().softmax(-1)
