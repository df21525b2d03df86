"""A learner that imitates one teacher or several.

Source: Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network, NeurIPS workshop 2014, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trainer.objectives.peers import all_rows
from trainer.parts import Objective, View

if TYPE_CHECKING:
    from torch import Tensor

# B rows, K classes


class Distill(Objective):
    """KL(mean of the teachers' probabilities || learner), softened, summed over all rows, labelled or not. Teachers don't change."""

    wide: ClassVar[bool] = True
    takes_target: ClassVar[bool | None] = False
    judges: ClassVar[str | None] = ""

    kind: Literal["distill"] = "distill"
    learner: str = Field(description="Task whose model and head learn.")
    teachers: list[str] = Field(min_length=1, description="Tasks of the same classes; their mean is imitated.")
    temperature: float = Field(2.0, gt=0, description="Divides logits; the loss is multiplied by its square, so gradients keep their size.")

    def reads(self) -> list[str]:
        """The learner and its teachers."""
        return [self.learner, *self.teachers]

    def teaches(self) -> list[str]:
        """The learner alone."""
        return [self.learner]

    def rows(self, columns: Mapping[str, Tensor], target: str | None) -> Tensor:
        """All rows."""
        return all_rows(columns)

    def loss(self, view: View) -> Tensor:
        """Float32 whatever the precision of the logits."""
        import torch

        learner_BK = (view.output(self.learner).float() / self.temperature).log_softmax(-1)
        mean_BK = sum((view.output(t).detach().float() / self.temperature).softmax(-1) for t in self.teachers) / len(self.teachers)
        return torch.nn.functional.kl_div(learner_BK, mean_BK, reduction="sum") * self.temperature**2  # type: ignore[arg-type]
