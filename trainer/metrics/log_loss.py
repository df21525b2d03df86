"""How surprised the model is by the right class."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.parts import Metric

if TYPE_CHECKING:
    from torch import Tensor

# N rows, K classes, R resamples


class LogLoss(Metric):
    """Mean negative log-probability of the right class, in nats; 0 is best. Also called cross-entropy.

    Probabilities are kept above the resolution of float32 (1.2e-7), so one sure mistake costs at
    most 16 nats.
    """

    higher_is_better: ClassVar[bool] = False
    targets: ClassVar[frozenset[str]] = frozenset({"category"})
    kind: Literal["log_loss"] = "log_loss"

    def compute(self, score: Tensor, target: Tensor, classes: int) -> float:
        if not len(target) or not score.isfinite().all():
            return float("nan")
        return float(_surprise(score, target).mean())

    def resampled(self, score: Tensor, target: Tensor, classes: int, count_RN: Tensor) -> Tensor:
        return count_RN @ _surprise(score, target).to(count_RN) / count_RN.sum(1)


def _surprise(score: Tensor, target: Tensor) -> Tensor:
    """Negative log-probability of the right class, float64 `[N]`. torchmetrics has no functional for it, torch has."""
    import torch

    log_NK = score.double().clamp(torch.finfo(torch.float32).eps, 1).log()
    return torch.nn.functional.nll_loss(log_NK, target, reduction="none")
