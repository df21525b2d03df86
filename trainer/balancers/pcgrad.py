"""Gradient surgery: each task gradient loses what goes against another.

Source: Yu, Kumar, Gupta, Levine, Hausman & Finn, Gradient Surgery for Multi-Task Learning, NeurIPS 2020, algorithm 1.
Ours, not TorchJD's: that one draws from the global generator, and takes one pair at a time (T * T steps; here T).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trainer.balancers.draws import generator
from trainer.balancers.solving import Geometry, begin, solve
from trainer.parts import Balancer, State

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class PcGrad(Balancer):
    """Projects each task gradient off those that it conflicts with, one after another in random order, and adds up (PCGrad).

    Without a conflict every weight is 1: the plain sum, as in the paper.
    """

    needs_gram: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = False
    default_gram: ClassVar[Literal["representation", "last_layer"]] = "last_layer"

    kind: Literal["pcgrad"] = "pcgrad"
    seed: int = Field(0, ge=0, description="Another seed takes the tasks in other orders.")

    def init(self, tasks: Sequence[str]) -> State:
        """No draws so far."""
        return {**begin(), "draws": 0}

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        import torch

        key_TT = torch.rand(len(present_T), len(present_T), generator=generator(self.seed, state["draws"])).numpy()

        def surgery(tasks: Geometry) -> np.ndarray:
            import numpy as np

            rows = np.arange(len(tasks.norm_A))
            # row i: the gradient of task i, as steps along all unit gradients
            step_AA = np.diag(tasks.norm_A)
            for other_A in key_TT[np.ix_(tasks.task_A, tasks.task_A)].argsort(1).T:
                inner_A = (step_AA * tasks.cosine_AA[other_A]).sum(1)
                step_AA[rows, other_A] -= np.where(other_A == rows, 0.0, np.minimum(inner_A, 0.0))
            return step_AA.sum(0)

        weight_T, state = solve(surgery, gram_TT, present_T, state)
        return weight_T, {**state, "draws": state["draws"] + 1}
