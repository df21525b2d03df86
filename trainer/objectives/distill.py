"""A learner that imitates one teacher or several.

Source: Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network, NeurIPS workshop 2014, section 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainer.objectives.peers import Taught
from trainer.parts import View

if TYPE_CHECKING:
    from torch import Tensor

# B rows, K classes


class Distill(Taught):
    """KL(mean of the teachers' probabilities || learner), softened, summed over all rows, labelled or not. Teachers don't change."""

    kind: Literal["distill"] = "distill"
    teachers: list[str] = Field(min_length=1, description="Tasks of the same classes; their mean is imitated.")
    temperature: float = Field(2.0, gt=0, description="Divides logits; the loss is multiplied by its square, so gradients keep their size.")

    def taught_by(self) -> list[str]:
        """The teachers."""
        return self.teachers

    def loss(self, view: View) -> Tensor:
        """Float32 whatever the precision of the logits."""
        import torch

        learner_BK = (view.output(self.learner).float() / self.temperature).log_softmax(-1)
        mean_BK = sum((view.output(t).detach().float() / self.temperature).softmax(-1) for t in self.teachers) / len(self.teachers)
        return torch.nn.functional.kl_div(learner_BK, mean_BK, reduction="sum") * self.temperature**2  # type: ignore[arg-type]
