"""The Nash bargaining solution among tasks.

Source: Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik & Fetaya, Multi-Task Learning as a Bargaining Game, ICML 2022, claim 3.1:
`G alpha = 1 / alpha`.
Ours, not TorchJD's, which linearises a part of the equation and calls a cone solver (cvxpy) up to 20 times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.balancers.solving import Geometry, bargain, begin, solve
from trainer.parts import Balancer, State

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

RIDGE = 1e-6
"""Added to cosines: where gradients cancel out, no task may ask for more than a thousand times a gradient."""


class NashMtl(Balancer):
    """The update that no task would trade for a larger relative gain of its own (Nash-MTL); any task's scale leaves it alone.

    Its length is that of the sum of orthogonal gradients: the root of the number of tasks times the root mean square of their norms.
    In the paper it is the first root alone, however small gradients get, and then clipped to 1.
    """

    needs_gram: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = False
    conflict_free: ClassVar[bool] = True

    kind: Literal["nash_mtl"] = "nash_mtl"

    def init(self, tasks: Sequence[str]) -> State:
        return begin()

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        return solve(_steps, gram_TT, present_T, state)


def _steps(tasks: Geometry) -> np.ndarray:
    import numpy as np

    count = len(tasks.norm_A)
    return bargain(tasks.cosine_AA + RIDGE * np.eye(count), np.ones(count), power=1.0)
