"""What objectives that learn from other tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from trainer.parts import Objective

if TYPE_CHECKING:
    from torch import Tensor


class Taught(Objective):
    """One task learns what others of the same classes say, on all rows, labelled or not. Nothing flows back into the others."""

    wide: ClassVar[bool] = True
    takes_target: ClassVar[bool | None] = False
    judges: ClassVar[str | None] = ""

    learner: str = Field(description="Task whose model and head learn.")

    def taught_by(self) -> Sequence[str]:
        """The others."""
        raise NotImplementedError

    def reads(self) -> list[str]:
        """The learner and those that it learns from."""
        return [self.learner, *self.taught_by()]

    def teaches(self) -> list[str]:
        """The learner alone."""
        return [self.learner]

    def rows(self, columns: Mapping[str, Tensor], target: str | None) -> Tensor:
        """How many rows there are, labelled or not: a float32 scalar."""
        import torch

        some = next(iter(columns.values()))
        return torch.tensor(float(len(some)), device=some.device)
