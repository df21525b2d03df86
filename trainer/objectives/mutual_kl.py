"""Peers that teach each other while they learn.

Source: Zhang, Xiang, Hospedales & Lu, Deep Mutual Learning, CVPR 2018, equation 7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainer.objectives.peers import Taught
from trainer.parts import View

if TYPE_CHECKING:
    from torch import Tensor

# B rows, K classes


class MutualKl(Taught):
    """Mean over peers of KL(peer || learner), summed over all rows, labelled or not. Peers are targets: nothing flows back into them.

    One task a learner, beside the learner's own task; the weight of the two is the balancer's business.
    """

    kind: Literal["mutual_kl"] = "mutual_kl"
    peers: list[str] = Field(min_length=1, description="Tasks of the same classes that it learns from.")
    temperature: float = Field(1.0, gt=0, description="Divides logits; the loss is multiplied by its square, so gradients keep their size.")

    def taught_by(self) -> list[str]:
        """The peers."""
        return self.peers

    def loss(self, view: View) -> Tensor:
        """Float32 whatever the precision of the logits."""
        import torch

        learner_BK = (view.output(self.learner).float() / self.temperature).log_softmax(-1)
        divergence = [
            torch.nn.functional.kl_div(
                learner_BK, (view.output(peer).detach().float() / self.temperature).log_softmax(-1), reduction="sum", log_target=True
            )
            for peer in self.peers
        ]
        return torch.stack(divergence).mean() * self.temperature**2
