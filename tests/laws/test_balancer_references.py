"""Every balancer against an independent reference: the paper's equations in float64, and TorchJD on the same Jacobian.

The references see the task gradients themselves, never a Gramian, and ask general solvers.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchjd.aggregation as jd
import torchjd.scalarization as scalar
from scipy.optimize import minimize
from torch import Tensor
from torchjd.linalg import QuadprogProjector

from trainer.balancers.draws import generator
from trainer.catalog import CATALOG, find
from trainer.parts import Balancer, State

SEEDS = range(6)
NAMES = [f"task{i}" for i in range(8)]


def gradients(seed: int, tasks: int = 5, size: int = 12) -> Tensor:
    """Task gradients `[tasks, size]`, float64, of norms from 1/2 to 2, with conflicts."""
    drawn = torch.Generator().manual_seed(seed)
    rows = torch.randn(tasks, size, generator=drawn, dtype=torch.float64)
    rows[0] -= 0.2 * (seed % 4) * rows[1:].sum(0)
    rows = rows / rows.norm(dim=1, keepdim=True)
    return rows * 2 ** (2 * torch.rand(tasks, 1, generator=drawn, dtype=torch.float64) - 1)


def update(balancer: Balancer, grads_TN: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    tasks = len(grads_TN)
    state = balancer.init(NAMES[:tasks]) if state is None else state
    # float64, so that what is compared is the method and not the rounding of the Gramian
    weight_T, state = balancer.weigh(torch.ones(tasks), grads_TN @ grads_TN.T, torch.ones(tasks, dtype=torch.bool), state)
    return weight_T.double() @ grads_TN, state


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


def made(kind: str, **options) -> Balancer:
    return find("balancer", kind)(**options)


# ── TorchJD ──────────────────────────────────────────────────────────────────────────────────────────

# kind, its options, TorchJD's aggregator, the length of ours over theirs (None: a convention of ours, see the part), tolerance
SAME = [
    ("equal", {}, lambda tasks: jd.Sum(), 1, 1e-6),
    (
        "static",
        {"weights": {name: 1.0 + i for i, name in enumerate(NAMES)}},
        lambda tasks: jd.Constant(torch.arange(1.0, tasks + 1).double()),
        1,
        1e-6,
    ),
    ("upgrad", {}, lambda tasks: jd.UPGrad(projector=QuadprogProjector(norm_eps=0, reg_eps=1e-9)), "tasks", 1e-6),
    ("aligned_mtl", {}, lambda tasks: jd.AlignedMTL(), "tasks", 1e-6),
    ("aligned_mtl", {"scale": "median"}, lambda tasks: jd.AlignedMTL(scale_mode="median"), "tasks", 1e-6),
    ("aligned_mtl", {"scale": "rmse"}, lambda tasks: jd.AlignedMTL(scale_mode="rmse"), "tasks", 1e-6),
    ("imtl_g", {}, lambda tasks: jd.IMTLG(), None, 1e-6),
    ("config", {}, lambda tasks: jd.ConFIG(), 1, 1e-6),
    ("mgda", {}, lambda tasks: jd.MGDA(epsilon=1e-6, max_iters=4000), "tasks", 1e-2),
    ("cagrad", {"c": 0.5}, lambda tasks: jd.CAGrad(c=0.5), "tasks", 1e-4),
    ("cagrad", {"c": 0.0}, lambda tasks: jd.CAGrad(c=0.0), "tasks", 1e-6),
    ("cagrad", {"c": 0.9}, lambda tasks: jd.CAGrad(c=0.9), "tasks", 1e-4),
    ("fairgrad", {"alpha": 1.0}, lambda tasks: jd.FairGrad(alpha=1.0), None, 1e-4),
    ("fairgrad", {"alpha": 2.0}, lambda tasks: jd.FairGrad(alpha=2.0), None, 1e-4),
    ("fairgrad", {"alpha": 0.5}, lambda tasks: jd.FairGrad(alpha=0.5), None, 1e-4),
    ("nash_mtl", {}, lambda tasks: jd.NashMTL(n_tasks=tasks, optim_niter=100), None, 1e-3),
]


@pytest.mark.parametrize(("kind", "options", "theirs", "length", "tolerance"), SAME, ids=[row[0] for row in SAME])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.filterwarnings("ignore")  # cvxpy about its own future
def test_the_update_is_that_of_torchjd(kind, options, theirs, length, tolerance, seed):
    tasks = 3 + seed % 3
    grads_TN = gradients(seed, tasks)
    ours, state = update(made(kind, **options), grads_TN)
    expected = theirs(tasks)(grads_TN)
    if kind == "imtl_g" and (grads_TN @ expected).max() < 0:  # where TorchJD's, and the paper's, climbs for every task
        expected = -expected
    torch.testing.assert_close(ours / ours.norm(), expected / expected.norm(), rtol=0, atol=tolerance)
    if length is not None:
        torch.testing.assert_close(
            ours.norm() / expected.norm(), torch.tensor(float(tasks if length == "tasks" else length)).double(), rtol=10 * tolerance, atol=0
        )
    assert int(state.get("fallbacks", 0)) == 0


def test_imtl_g_never_climbs_where_the_papers_formula_does():
    climbs = 0
    for seed in range(40):
        near = gradients(seed, 3, 6)
        near[2] = 0.02 * (near[0] / near[0].norm() + near[1] / near[1].norm() + 0.3 * near[2])  # a short gradient between two long ones
        ours, _ = update(made("imtl_g"), near)
        if (near @ jd.IMTLG()(near)).max() < 0:
            climbs += 1
            assert ours.norm() == pytest.approx(float(3 * near.norm(dim=1).max()), rel=1e-4)
        assert (near @ ours).min() > 0
        assert ours.norm() <= 3 * near.norm(dim=1).max() * (1 + 1e-6)
    assert climbs


def drawn_order(draws: int, tasks: int, seed: int = 0) -> Tensor:
    return torch.rand(tasks, tasks, generator=generator(seed, draws)).argsort(1)


@pytest.mark.parametrize("seed", SEEDS)
def test_pcgrad_is_that_of_torchjd_in_the_same_order(seed, monkeypatch):
    state = None
    for step in range(3):
        grads_TN = gradients(10 * seed + step)
        orders = iter(drawn_order(step, 5))
        monkeypatch.setattr(torch, "randperm", lambda n, orders=orders: next(orders))
        ours, state = update(made("pcgrad"), grads_TN, state)
        torch.testing.assert_close(ours, jd.PCGrad()(grads_TN), rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_gradvac_is_that_of_torchjd_in_the_same_order(seed, monkeypatch):
    theirs, state = jd.GradVac(beta=0.3), None
    for step in range(5):
        grads_TN = gradients(10 * seed + step)
        # TorchJD draws positions among the others
        orders = iter([torch.tensor([j - (j > i) for j in row.tolist() if j != i]) for i, row in enumerate(drawn_order(step, 5))])
        monkeypatch.setattr(torch, "randperm", lambda n, orders=orders: next(orders))
        ours, state = update(made("gradvac", beta=0.3), grads_TN, state)
        torch.testing.assert_close(ours, theirs(grads_TN), rtol=0, atol=1e-5)


def test_random_weights_are_those_of_torchjd_of_the_same_draw(monkeypatch):
    grads_TN = gradients(0)
    draw_T = torch.randn(5, generator=generator(0, 0), dtype=torch.float64)
    monkeypatch.setattr(torch, "randn", lambda *a, _real=torch.randn, **k: draw_T if "generator" not in k else _real(*a, **k))
    torch.testing.assert_close(update(made("random"), grads_TN)[0], 5 * jd.Random()(grads_TN), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("leak", [0.0, 0.4])
def test_grad_drop_is_that_of_torchjd_of_the_same_draw(leak, monkeypatch):
    grads_TN = gradients(0).float()
    ours, _ = made("grad_drop", leak=leak).combine(grads_TN, torch.ones(5, dtype=torch.bool), {"draws": 3})
    draw_N = torch.rand(12, generator=generator(0, 3))
    monkeypatch.setattr(torch, "rand", lambda *a, **k: draw_N)
    torch.testing.assert_close(ours, jd.GradDrop(leak=torch.full((5,), leak))(grads_TN), rtol=1e-5, atol=1e-6)


def slopes(scalarizer: torch.nn.Module, loss_T: Tensor) -> Tensor:
    """What TorchJD's scalarisation weighs each loss with."""
    values = loss_T.double().clone().requires_grad_()
    return torch.autograd.grad(scalarizer(values), values)[0]


def weights(balancer: Balancer, loss_T: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    state = balancer.init(NAMES[: len(loss_T)]) if state is None else state
    weight_T, state = balancer.weigh(loss_T.float(), None, torch.ones(len(loss_T), dtype=torch.bool), state)
    return weight_T.double(), state


def curve(step: int, tasks: int = 4) -> Tensor:
    drawn = torch.Generator().manual_seed(step)
    return (0.3 + torch.rand(tasks, generator=drawn)) * torch.linspace(0.8, 0.95, tasks) ** step


def test_the_geometric_mean_and_the_smooth_maximum_are_those_of_torchjd():
    for step in range(5):
        loss_T = curve(step)
        torch.testing.assert_close(
            weights(made("geometric_mean"), loss_T)[0], 4 * slopes(scalar.GeometricMean(), loss_T), rtol=1e-5, atol=0
        )
        for mu in (0.01, 0.1, 1.0):
            ours = weights(made("smooth_tchebycheff", mu=mu), loss_T)[0]
            torch.testing.assert_close(ours, 16 * slopes(scalar.STCH(mu=mu), loss_T), rtol=1e-4, atol=1e-6)


def test_dwa_is_that_of_torchjd_with_a_window_for_an_epoch():
    theirs, balancer, state = scalar.DWA(temperature=1.5), made("dwa", temperature=1.5, window=3), None
    for step in range(15):
        found, state = weights(balancer, curve(step), state)
        torch.testing.assert_close(found, slopes(theirs, curve(step)), rtol=1e-5, atol=0)
        if step % 3 == 2:
            theirs.step()
    assert found.std() > 1e-3


def test_famo_is_that_of_torchjd_with_the_next_batch_for_the_second_look():
    theirs, balancer, state = scalar.FAMO(4, lr=0.05).double(), made("famo", lr=0.05), None
    for step in range(20):
        if step:
            theirs.update(curve(step).double())
        found, state = weights(balancer, curve(step), state)
        torch.testing.assert_close(found, 4 * slopes(theirs, curve(step)), rtol=1e-4, atol=0)


def test_uncertainty_is_that_of_torchjd_learned_by_adam():
    theirs, balancer, state = scalar.UW(4).double(), made("uncertainty", lr=0.05), None
    adam = torch.optim.Adam(theirs.parameters(), lr=0.05)
    for step in range(20):
        found, state = weights(balancer, curve(step), state)
        torch.testing.assert_close(found, 2 * slopes(theirs, curve(step)), rtol=1e-4, atol=0)  # theirs has halves throughout
        adam.zero_grad()
        theirs(curve(step).double()).backward()
        adam.step()


# TorchJD's methods that cotrain has no part for, so that a new one does not go unnoticed
NOT_OURS = {"CRMOGMWeighting", "DualProj", "ExcessMTL", "Krum", "Mean", "MoDoWeighting", "PCD", "SDMGradWeighting", "TrimmedMean"}
BASES = {"Aggregator", "GramianWeightedAggregator", "WeightedAggregator", "Weighting"}
OURS = {
    "AlignedMTL": "aligned_mtl", "CAGrad": "cagrad", "ConFIG": "config", "Constant": "static", "FairGrad": "fairgrad", "GradDrop": "grad_drop",
    "GradVac": "gradvac", "IMTLG": "imtl_g", "MGDA": "mgda", "NashMTL": "nash_mtl", "PCGrad": "pcgrad", "Random": "random", "Sum": "equal", "UPGrad": "upgrad",
}  # fmt: skip
SCALARS = {"DWA": "dwa", "FAMO": "famo", "GeometricMean": "geometric_mean", "STCH": "smooth_tchebycheff", "UW": "uncertainty"}


def test_every_method_of_torchjd_is_compared_or_named_as_not_ours():
    methods = {name for name in jd.__all__ if not (name.endswith("Weighting") and name.removesuffix("Weighting") in jd.__all__)} - BASES
    assert methods == OURS.keys() | NOT_OURS
    assert {*OURS.values(), *SCALARS.values(), "gradnorm"} == CATALOG["balancer"].keys()  # TorchJD has no GradNorm
    assert SCALARS.keys() <= set(scalar.__all__)


# ── The papers' equations ────────────────────────────────────────────────────────────────────────────


def constrained(objective, start: np.ndarray, constraints: list[dict]) -> np.ndarray:
    found = minimize(objective, start, method="SLSQP", constraints=constraints, options={"ftol": 1e-15, "maxiter": 2000})
    return found.x


@pytest.mark.parametrize("seed", SEEDS)
def test_mgda_finds_the_shortest_convex_combination(seed):
    grads_TN = gradients(seed).numpy()
    on_simplex = [{"type": "eq", "fun": lambda w: w.sum() - 1}, {"type": "ineq", "fun": lambda w: w}]
    expected = grads_TN.T @ constrained(lambda w: float(np.square(grads_TN.T @ w).sum()), np.full(5, 0.2), on_simplex)
    np.testing.assert_allclose(update(made("mgda"), torch.tensor(grads_TN))[0].numpy() / 5, expected, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("c", [0.2, 0.8])
def test_cagrad_serves_the_worst_task_best_near_the_mean_gradient(seed, c):
    """The primal problem, eq. 1 of the paper: max over d of min_i <g_i, d> with |d - g0| <= c |g0|, as an epigraph."""
    grads_TN = gradients(seed).numpy()
    mean = grads_TN.mean(0)
    inside = {"type": "ineq", "fun": lambda x: (c * np.linalg.norm(mean)) ** 2 - np.square(x[:-1] - mean).sum()}
    below = {"type": "ineq", "fun": lambda x: grads_TN @ x[:-1] - x[-1]}
    expected = constrained(lambda x: -x[-1], np.append(mean, (grads_TN @ mean).min()), [inside, below])[:-1]
    np.testing.assert_allclose(update(made("cagrad", c=c), torch.tensor(grads_TN))[0].numpy() / 5, expected, atol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_upgrad_adds_up_projections_onto_the_dual_cone(seed):
    """Eq. 3 of the paper: the nearest vector to each gradient whose inner products with all are not negative."""
    grads_TN = gradients(seed).numpy()
    peace = [{"type": "ineq", "fun": lambda x: grads_TN @ x, "jac": lambda x: grads_TN}]
    expected = sum(constrained(lambda x, g=g: float(np.square(x - g).sum()), g, peace) for g in grads_TN)
    np.testing.assert_allclose(update(made("upgrad"), torch.tensor(grads_TN))[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("kind", "alpha"), [("nash_mtl", 1.0), ("fairgrad", 0.5), ("fairgrad", 1.0), ("fairgrad", 2.0), ("fairgrad", 5.0)])
def test_bargains_are_as_fair_as_their_papers_say(seed, kind, alpha):
    """The primal problem: the alpha-fair sum of the gains <g_i, d> on a ball, by a trust region in d.

    With the ball as a penalty, which gives the same direction, since the utility is homogeneous.
    """
    grads_TN = gradients(seed).numpy()

    def value(d: np.ndarray) -> float:
        gain = grads_TN @ d
        if gain.min() <= 0:
            return math.inf
        return d @ d / 2 - (np.log(gain) if alpha == 1 else gain ** (1 - alpha) / (1 - alpha)).sum()

    def slope(d: np.ndarray) -> np.ndarray:
        return d - grads_TN.T @ np.maximum(grads_TN @ d, 1e-9) ** -alpha

    def bend(d: np.ndarray) -> np.ndarray:
        return np.eye(len(d)) + alpha * grads_TN.T @ np.diag(np.maximum(grads_TN @ d, 1e-9) ** (-alpha - 1)) @ grads_TN

    start = np.linalg.pinv(grads_TN) @ np.ones(5)
    d = minimize(value, start, jac=slope, hess=bend, method="trust-exact", options={"gtol": 1e-9, "maxiter": 5000}).x
    assert np.abs(slope(d)).max() < 1e-6 * np.linalg.norm(d)
    ours = update(made(kind, **({"alpha": alpha} if kind == "fairgrad" else {})), torch.tensor(grads_TN))[0].numpy()
    np.testing.assert_allclose(ours / np.linalg.norm(ours), d / np.linalg.norm(d), atol=1e-4)
    if alpha == 1:  # the length that the part promises
        assert np.linalg.norm(ours) == pytest.approx(math.sqrt(np.square(grads_TN).sum()), rel=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
def test_config_and_imtl_g_project_alike_on_all_gradients(seed):
    """ConFIG eq. 2-3 by numpy's pseudoinverse of the unit gradients; IMTL-G: equal projections, weights that sum to T."""
    grads_TN = gradients(seed).numpy()
    units = grads_TN / np.linalg.norm(grads_TN, axis=1, keepdims=True)
    direction = np.linalg.pinv(units) @ np.ones(5)
    direction /= np.linalg.norm(direction)
    np.testing.assert_allclose(
        update(made("config"), torch.tensor(grads_TN))[0].numpy(), (grads_TN @ direction).sum() * direction, atol=1e-4
    )
    ours = update(made("imtl_g"), torch.tensor(grads_TN))[0].numpy()
    np.testing.assert_allclose(units @ ours / np.linalg.norm(ours), np.full(5, (units @ direction).mean()), atol=1e-5)


def test_aligned_mtl_gives_all_components_the_strength_of_the_weakest():
    grads_TN = gradients(3)
    left, strength, right = torch.linalg.svd(grads_TN, full_matrices=False)
    torch.testing.assert_close(update(made("aligned_mtl"), grads_TN)[0], strength.min() * (left @ right).sum(0), rtol=0, atol=1e-5)


def test_gradnorm_descends_on_the_papers_loss_by_adam():
    """Eq. 2 by autograd, with the target held constant, and torch's Adam; then weights are scaled to sum to T."""
    balancer, tasks = made("gradnorm", alpha=1.2, lr=0.03), 4
    state = balancer.init(NAMES[:tasks])
    w = torch.ones(tasks, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([w], lr=0.03)
    first = curve(0).double()
    for step in range(25):
        grads_TN, loss_T = gradients(step, tasks), curve(step).double()
        found, state = balancer.weigh(loss_T.float(), grads_TN @ grads_TN.T, torch.ones(tasks, dtype=torch.bool), state)
        torch.testing.assert_close(found.double(), w.detach(), rtol=1e-4, atol=0)
        norm_T = (w[:, None] * grads_TN).norm(dim=1)
        rate_T = loss_T / first / (loss_T / first).mean()
        adam.zero_grad()
        scale = grads_TN.norm(dim=1).mean()  # ours divides norms by their mean, which the paper's eq. does not turn on
        ((norm_T - (norm_T.mean() * rate_T**1.2).detach()).abs().sum() / scale).backward()
        adam.step()
        with torch.no_grad():
            w *= tasks / w.sum()
    assert found.std() > 0.05


def test_dwa_famo_and_the_smooth_maximum_by_their_formulas():
    """By hand, so that they don't rest on TorchJD alone."""
    balancer, state = made("dwa", temperature=2.0, window=2), None
    seen = [np.array([4.0, 1.0]), np.array([2.0, 3.0]), np.array([1.0, 1.0]), np.array([2.0, 1.0])]
    for loss in seen:
        found, state = weights(balancer, torch.tensor(loss), state)
        assert found.tolist() == [1, 1]
    ratio = np.array([1.5 / 3.0, 1.0 / 2.0])
    expected = 2 * np.exp(ratio / 2) / np.exp(ratio / 2).sum()
    np.testing.assert_allclose(weights(balancer, torch.tensor([1.0, 1.0]), state)[0], expected, rtol=1e-6)

    balancer = made("famo", lr=0.1, decay=0.0)
    first, state = weights(balancer, torch.tensor([1.0, 4.0]))
    np.testing.assert_allclose(first, [2 * 0.8, 2 * 0.2], rtol=1e-6)  # equal shares over losses of 1 and 4
    second, _ = weights(balancer, torch.tensor([0.5, 4.0]), state)  # the first fell, so Adam's first step is lr against it
    share = np.exp([-0.1, 0.1]) / np.array([0.5, 4.0])
    np.testing.assert_allclose(second, 2 * share / share.sum(), rtol=1e-5)

    found, _ = weights(made("smooth_tchebycheff", mu=0.5), torch.tensor([1.0, 3.0]))
    np.testing.assert_allclose(found, 2 * np.exp([1.0, 3.0]) / np.exp([1.0, 3.0]).sum(), rtol=1e-6)
