"""Gradient vaccine: task gradients are turned towards one another until they are as alike as they usually are.

Source: Wang, Tsvetkov, Firat & Cao, Gradient Vaccine, ICLR 2021, eq. 2-3 and algorithm 1.
Ours, not TorchJD's: that one draws from the global generator, takes one pair at a time, and forgets its targets when a task is absent.
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

HIGHEST = 0.99
"""Target cosines count as no more than this: to make a cosine of 1 takes an endless multiple of the other gradient."""


class GradVac(Balancer):
    """Like PCGrad, with a running mean of each pair's cosine in place of 0 as the least that is wanted.

    Where every pair is alike enough all weights are 1: the plain sum, as in the paper.
    """

    needs_gram: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = False
    default_gram: ClassVar[Literal["representation", "last_layer"]] = "last_layer"

    kind: Literal["gradvac"] = "gradvac"
    beta: float = Field(0.5, ge=0, le=1, description="Share of the newest cosine in the running mean.")
    seed: int = Field(0, ge=0, description="Another seed takes the tasks in other orders.")

    def init(self, tasks: Sequence[str]) -> State:
        """Targets of 0: the first step is PCGrad's. They are plain numbers, since they are used on the CPU."""
        return {**begin(), "draws": 0, "target_TT": [[0.0] * len(tasks) for _ in tasks]}

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        import numpy as np
        import torch

        key_TT = torch.rand(len(present_T), len(present_T), generator=generator(self.seed, state["draws"])).numpy()
        target_TT = np.array(state["target_TT"])

        def vaccine(tasks: Geometry) -> np.ndarray:
            rows, cosine_AA = np.arange(len(tasks.norm_A)), tasks.cosine_AA
            here = np.ix_(tasks.task_A, tasks.task_A)
            goal_AA = target_TT[here]
            step_AA = np.diag(tasks.norm_A)  # row i: the gradient of task i, as steps along all unit gradients
            inner_AA = step_AA @ cosine_AA
            for other_A in key_TT[here].argsort(1).T:
                norm_A = np.sqrt(np.maximum((inner_AA * step_AA).sum(1), 1e-300))
                found_A = np.clip(inner_AA[rows, other_A] / norm_A, -1, 1)
                goal_A = np.clip(goal_AA[rows, other_A], -1, HIGHEST)
                turn_A = norm_A * (goal_A * np.sqrt(1 - found_A**2) / np.sqrt(np.maximum(1 - goal_A**2, 1e-300)) - found_A)
                turn_A = np.where((other_A != rows) & (found_A < goal_A), turn_A, 0.0)
                step_AA[rows, other_A] += turn_A
                inner_AA += turn_A[:, None] * cosine_AA[other_A]
                goal_AA[rows, other_A] += np.where(other_A != rows, self.beta * (found_A - goal_AA[rows, other_A]), 0.0)
            if np.isfinite(goal_AA).all():
                target_TT[here] = goal_AA
            return step_AA.sum(0)

        weight_T, state = solve(vaccine, gram_TT, present_T, state)
        return weight_T, {**state, "draws": state["draws"] + 1, "target_TT": target_TT.tolist()}
