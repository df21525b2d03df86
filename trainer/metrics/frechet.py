"""How far apart two sets of features are, taken for two normal distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.parts import Metric

if TYPE_CHECKING:
    from torch import Tensor

# N rows, D features, R resamples


class Frechet(Metric):
    """Fréchet distance between normal distributions with the means and covariances of features of made and of real images; 0 is best.

    With the features of one particular network on ImageNet it is known as FID; here they are those of the task's judge, so values can be
    compared within one evaluation only. It shrinks with more rows: compare on equally many.
    Source: Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, NeurIPS 2017, equation 6.
    """

    higher_is_better: ClassVar[bool] = False
    targets: ClassVar[frozenset[str]] = frozenset({"images"})
    kind: Literal["frechet"] = "frechet"

    def compute(self, score: Tensor, target: Tensor, classes: int) -> float:
        import torch

        if len(target) < 2 or not score.isfinite().all():
            return float("nan")
        return float(_distance(score.double(), target.double(), torch.ones(len(target), dtype=torch.float64)))

    def resampled(self, score: Tensor, target: Tensor, classes: int, count_RN: Tensor) -> Tensor:
        """To first order in how often each row is drawn: a resample has fewer distinct rows, which makes distances larger than they are.

        Source: Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982, chapter 6 (infinitesimal jackknife).
        """
        import torch

        if len(target) < 2:
            return torch.full((len(count_RN),), torch.nan)
        with torch.enable_grad():
            once_N = torch.ones(len(target), dtype=torch.float64, requires_grad=True)
            value = _distance(score.double(), target.double(), once_N)
            (slope_N,) = torch.autograd.grad(value, once_N)
        return (value.detach() + (count_RN.double() - 1) @ slope_N).clamp_min(0)


def _distance(made_ND: Tensor, real_ND: Tensor, count_N: Tensor) -> Tensor:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), each row counted so often."""
    import torch

    (mean_D, spread_ND), (other_D, spread_of_ND) = (_moments(x_ND, count_N) for x_ND in (made_ND, real_ND))
    # the eigenvalues of C1 C2 are those of the symmetric A C2 A', where C1 = A' A
    value_D, vector_DD = torch.linalg.eigh(spread_of_ND.T @ spread_of_ND)
    root_DD = _root(value_D)[:, None] * vector_DD.T
    product_DD = root_DD @ (spread_ND.T @ spread_ND) @ root_DD.T
    common = _root(torch.linalg.eigvalsh((product_DD + product_DD.T) / 2)).sum()
    return (mean_D - other_D).square().sum() + spread_ND.square().sum() + spread_of_ND.square().sum() - 2 * common


def _moments(x_ND: Tensor, count_N: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, and rows whose inner products make the covariance."""
    mean_D = count_N @ x_ND / count_N.sum()
    return mean_D, (count_N / (count_N.sum() - 1)).sqrt()[:, None] * (x_ND - mean_D)


def _root(value_D: Tensor) -> Tensor:
    """Square roots of eigenvalues, those that are 0 but for rounding left out: their roots have no finite slope."""
    there = value_D > 1e-10 * value_D.detach().max().clamp_min(1e-30)
    return value_D.where(there, value_D.new_ones(())).sqrt() * there
