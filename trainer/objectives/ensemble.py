"""Several models that predict together.

Source: Lakshminarayanan, Pritzel & Blundell, Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles, NeurIPS 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trainer.parts import Objective, View

if TYPE_CHECKING:
    from torch import Tensor

# B rows, K classes


class Ensemble(Objective):
    """The mean of the members' predictions: probabilities of a category, values of a number.

    With `learn` the members are trained on the loss of the mean besides their own (a joint ensemble); without, they are only combined.
    Members that learn nothing but the loss of their mean may collude instead of each being right: Jeffares et al., Joint Training of Deep
    Ensembles Fails Due to Learner Collusion, NeurIPS 2023.
    """

    wide: ClassVar[bool] = True
    targets: ClassVar[frozenset[str]] = frozenset({"category", "number"})

    kind: Literal["ensemble"] = "ensemble"
    members: list[str] = Field(min_length=2, description="Tasks with the same target.")
    learn: bool = Field(False, description="Train the members on the loss of their mean.")

    def reads(self) -> list[str]:
        """The members."""
        return self.members

    def teaches(self) -> list[str]:
        """The members, where it learns."""
        return self.members if self.learn else []

    def rows(self, columns: Mapping[str, Tensor], target: str | None) -> Tensor:
        """Rows with a target; none where nothing is learned."""
        import torch

        truth = columns[target or ""]
        there = ~truth.isnan() if truth.is_floating_point() else truth >= 0
        return (there if self.learn else there[:0]).sum(dtype=torch.float32)

    def loss(self, view: View) -> Tensor:
        """Negative log-likelihood of the mean of probabilities, or squared error of the mean of values."""
        import torch

        truth = view.target
        if not self.learn or truth is None:
            # the sum of nothing: 0, with a graph, for a backward pass needs one
            return view.output(self.members[0]).flatten()[:0].float().sum()
        if truth.is_floating_point():
            mean_B = self.scores(view)[0]
            return torch.nn.functional.mse_loss(mean_B, torch.where(truth.isnan(), mean_B.detach(), truth), reduction="sum")
        log_MBK = torch.stack([view.output(member).float().log_softmax(-1) for member in self.members])
        mean_BK = log_MBK.logsumexp(0) - torch.tensor(len(self.members), device=log_MBK.device).log()
        return torch.nn.functional.nll_loss(mean_BK, truth, ignore_index=-1, reduction="sum")

    def scores(self, view: View) -> tuple[Tensor, Tensor | None]:
        """The mean of what members predict."""
        import torch

        return torch.stack([view.objective(member).predict(view.output(member)).float() for member in self.members]).mean(0), None

    def alone(self) -> Ensemble:
        """Members that are trained alone, and combined."""
        return self.model_copy(update={"learn": False})
