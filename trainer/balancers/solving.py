"""What balancers that solve on the Gramian share: one trip to the host, a clean Gramian, and a way out where a solver can't be trusted.

Not a part. Everything is float64 on the CPU: at T = 32 a device would wait longer for each launch than numpy takes to finish.

Shape suffixes: T tasks of the phase, A tasks of the step that have a gradient, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trainer.parts import State

if TYPE_CHECKING:
    from torch import Tensor

NO_GRADIENT = 1e-12
"""A task whose gradient is this much shorter than the longest has none: its direction is rounding."""
RIDGE = 1e-8
"""Added to cosines where a solution has to be unique, so that equal tasks get equal weights; the noise of float32 is larger."""
LONGEST = 1e6
"""In multiples of the root mean square of the gradient norms: what is to step further cancels against others down to rounding."""


@dataclass(frozen=True)
class Geometry:
    """The Gramian of the tasks that have a gradient, as norms and cosines, so that tasks of very different scale stay exact."""

    norm_A: np.ndarray
    """Gradient norms over their root mean square."""
    cosine_AA: np.ndarray
    """Inner products of the unit gradients: symmetric, positive semidefinite, nothing of the size of float32's rounding in its spectrum."""
    task_A: np.ndarray
    """Positions among the T tasks."""
    _value_A: np.ndarray
    _vector_AA: np.ndarray

    @property
    def gram_AA(self) -> np.ndarray:
        """Inner products of the task gradients."""
        return self.norm_A[:, None] * self.cosine_AA * self.norm_A

    def factor(self, ridge: float = 0.0) -> np.ndarray:
        """`F_AA` whose columns have the cosines as inner products, plus `ridge` on the diagonal."""
        return np.sqrt(self._value_A + ridge)[:, None] * self._vector_AA.T


Solver = Callable[[Geometry], np.ndarray]
"""How far to step along each task's *unit* gradient, `[A]`, in multiples of the root mean square of the norms."""


def begin() -> State:
    """The state of a balancer that solves: how often it could not, int64."""
    import torch

    return {"fallbacks": torch.zeros((), dtype=torch.int64)}


def solve(solver: Solver, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
    """Weights `[T]` float32 by `solver`, and the next state.

    A task alone weighs 1, and so does one that is present without a gradient (its weight changes nothing). Where the
    solver fails, or its answer is not finite or absurdly long, the unit gradients are added up, at the length that is typical
    of this step's gradients; where the Gramian itself is not finite every weight is 1. Both count in `state["fallbacks"]`.
    """
    import torch

    if gram_TT is None:
        raise ValueError("this balancer needs the Gramian")
    size = len(present_T)
    flat = torch.cat([gram_TT.detach().flatten().double(), present_T.double()]).cpu().numpy()
    gram, present = flat[:-size].reshape(size, size), flat[-size:] > 0
    weight = present.astype(np.float64)
    found: np.ndarray | None = None
    with np.errstate(all="ignore"):
        task = np.flatnonzero(present)
        whole = bool(np.isfinite(gram[np.ix_(task, task)]).all())
        clean = _clean(gram, task) if whole else None
        if clean is not None and len(clean.task_A) > 1:
            try:
                found = solver(clean)
            except (ArithmeticError, RuntimeError, ValueError):  # numpy's and torch's LinAlgError are among them
                found = None
            if found is not None and not (np.isfinite(found).all() and np.abs(found).max() <= LONGEST):
                found = None
            weight[clean.task_A] = (1.0 if found is None else found) / clean.norm_A
    if not whole or (found is None and clean is not None and len(clean.task_A) > 1):
        state = {**state, "fallbacks": state["fallbacks"] + 1}
    return torch.from_numpy(weight).to(gram_TT.device, torch.float32), state


def _clean(gram_TT: np.ndarray, task: np.ndarray) -> Geometry | None:
    norm = np.sqrt(np.clip(gram_TT[task, task], 0, None))
    task, norm = task[norm > NO_GRADIENT * norm.max(initial=0.0)], norm[norm > NO_GRADIENT * norm.max(initial=0.0)]
    if not len(task):
        return None
    here = gram_TT[np.ix_(task, task)]
    cosine = np.clip((here + here.T) / 2 / norm[:, None] / norm, -1.0, 1.0)
    value, vector = np.linalg.eigh(cosine)
    value = np.where(value > len(task) * np.finfo(np.float32).eps * value[-1], value, 0.0)
    cosine = (vector * value) @ vector.T
    return Geometry(norm / np.sqrt(np.mean(np.square(norm))), (cosine + cosine.T) / 2, task, value, vector)


def nearest(points_DA: np.ndarray) -> np.ndarray:
    """Convex weights `[A]` of the point of the convex hull of the columns that is nearest to the origin.

    As non-negative least squares (Lawson & Hanson 1974, solved by scipy): `min |P x|^2 + (1 - sum x)^2` over `x >= 0` has the
    wanted point at `P x / sum x`, since for `x = s w` the best s leaves a function that grows with `|P w|`.
    """
    from scipy.optimize import nnls

    scale = np.sqrt(np.square(points_DA).sum(0).min())
    system = np.vstack([points_DA / (scale or 1.0), np.ones(points_DA.shape[1])])
    x, _ = nnls(system, np.eye(len(system))[-1])
    return x / x.sum()


def bargain(cosine_AA: np.ndarray, target_A: np.ndarray, power: float, iterations: int = 100) -> np.ndarray:
    """The positive solution x `[A]` of `C x = target / x**power`.

    The minimum of `x'Cx / 2 - sum target * phi(x)` with `phi'(x) = x**-power`, which is strictly convex, by Newton's method in
    relative steps, never more than 95 % of the way to the boundary, halved until they descend.
    Raises ArithmeticError where it does not converge.
    """

    def value(x: np.ndarray) -> float:
        phi = np.log(x) if power == 1 else x ** (1 - power) / (1 - power)
        return float(x @ cosine_AA @ x / 2 - target_A @ phi)

    x = target_A ** (1 / (1 + power))
    x *= (target_A @ x ** (1 - power) / (x @ cosine_AA @ x)) ** (1 / (1 + power))
    before = value(x)
    for _ in range(iterations):
        pull, push = x * (cosine_AA @ x), target_A * x ** (1 - power)
        if np.abs(pull / push - 1).max() < 1e-9:
            return x
        slope = pull - push
        hessian = x[:, None] * cosine_AA * x
        hessian[np.diag_indices_from(hessian)] += power * push
        relative = np.linalg.solve(hessian, -slope)
        step = min(1.0, 0.95 / max(-relative.min(), 1e-300))
        for _ in range(40):
            after = value(x * (1 + step * relative))
            if after <= before + 1e-4 * step * float(slope @ relative) or step * np.abs(relative).max() < 1e-7:
                break
            step /= 2
        x, before = x * (1 + step * relative), after
    if np.abs(pull / push - 1).max() < 1e-4:
        return x
    raise ArithmeticError("the bargaining equations did not converge")
