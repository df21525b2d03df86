"""Laws that every balancer of the catalogue keeps."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from trainer.catalog import CATALOG, find
from trainer.parts import Balancer, State

NAMES = [f"task{i}" for i in range(12)]
OPTIONS: dict[str, dict[str, Any]] = {"static": {"weights": {name: 0.5 + i for i, name in enumerate(NAMES)}}, "dwa": {"window": 2}}
BALANCERS: dict[str, Balancer] = {kind: find("balancer", kind)(**OPTIONS.get(kind, {})) for kind in CATALOG["balancer"]}
GRAM = [kind for kind, balancer in BALANCERS.items() if balancer.needs_gram]
SOLVED = [kind for kind in GRAM if kind != "gradnorm"]
DRAWN = ["random", "pcgrad", "gradvac"]
"""Draw a number per task or pair of tasks."""
SETTLED = [kind for kind in BALANCERS if kind not in DRAWN]
# the paper's objective compares losses of different tasks, or a loss with 1
OWN_UNITS = ["uncertainty", "smooth_tchebycheff"]


def gradients(tasks: int, seed: int = 0, size: int = 40, conflict: float = 0.0, spread: float = 1.0) -> Tensor:
    """Float64 task gradients `[tasks, size]`; `spread` is the ratio of the longest to the shortest."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(tasks, size, generator=generator, dtype=torch.float64)
    rows[0] -= conflict * rows[1:].sum(0)
    return rows * torch.logspace(0, math.log10(spread), tasks, dtype=torch.float64)[:, None]


def losses(step: int, tasks: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + step)
    return (torch.rand(tasks, generator=generator) + 0.2) * 0.9**step


def weigh(balancer: Balancer, loss_T: Tensor, gram_TT: Tensor, state: State, present_T: Tensor | None = None) -> tuple[Tensor, State]:
    present_T = torch.ones(len(loss_T), dtype=torch.bool) if present_T is None else present_T
    return balancer.weigh(loss_T, gram_TT if balancer.needs_gram else None, present_T, state)


def train(kind: str, tasks: int = 5, steps: int = 5, scale: float = 1.0, order: list[int] | None = None, spread: float = 3.0) -> Tensor:
    """The unit updates of some steps on drawn gradients and losses, `[steps, N]`."""
    balancer, order = BALANCERS[kind], order or list(range(tasks))
    state = balancer.init([NAMES[i] for i in order])
    updates = []
    for step in range(steps):
        grads_TN = scale * gradients(tasks, step, conflict=0.5, spread=spread)[order]
        loss_T = scale * losses(step, tasks)[order]
        weight_T, state = weigh(balancer, loss_T, (grads_TN @ grads_TN.T).float(), state)
        update = weight_T.double() @ grads_TN
        if balancer.needs_grads:
            update, state = balancer.combine(grads_TN.float(), torch.ones(tasks, dtype=torch.bool), state)
        updates.append(update.double() / update.norm())
    return torch.stack(updates)


def reloaded(state: State) -> State:
    """What is left of a state that went through a checkpoint."""
    tensors = {name: value.contiguous() for name, value in state.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in state.items() if name not in tensors}
    return json.loads(json.dumps(plain)) | load(save(tensors))


@pytest.mark.parametrize("kind", SETTLED)
def test_the_order_of_tasks_does_not_matter(kind):
    torch.testing.assert_close(train(kind), train(kind, order=[3, 1, 4, 0, 2]), rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", DRAWN)
def test_the_order_of_tasks_does_not_matter_for_what_is_drawn_on_average(kind):
    balancer, grads_TN = BALANCERS[kind], gradients(4, 5, conflict=0.6)
    if kind == "gradvac":
        balancer = balancer.model_copy(update={"beta": 0.0})
    means = []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        state, gram_TT = balancer.init(NAMES[:4]), (grads_TN @ grads_TN.T).float()[order][:, order]
        total_T = torch.zeros(4)
        for _ in range(800):
            weight_T, state = weigh(balancer, torch.ones(4), gram_TT, state)
            total_T += weight_T / 800
        means.append(total_T[torch.tensor(order).argsort()])
    torch.testing.assert_close(means[0], means[1], rtol=0, atol=0.15)


@pytest.mark.parametrize("kind", BALANCERS)
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_scale_of_all_losses_does_not_turn_the_update(kind, scale):
    same = torch.allclose(train(kind, scale=scale), train(kind), rtol=0, atol=2e-4)
    assert same == (kind not in OWN_UNITS)


@pytest.mark.parametrize("kind", ["nash_mtl", "imtl_g", "config"])
def test_the_scale_of_one_loss_does_not_turn_the_update(kind):
    torch.testing.assert_close(train(kind, spread=1e4), train(kind, spread=1.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", SOLVED)
def test_orthogonal_gradients_of_equal_norm_are_added_up(kind):
    expected = 1.5 if kind == "cagrad" else 1.0  # in the middle already, c goes on in the same direction
    weight_T, state = weigh(BALANCERS[kind], torch.ones(6), 7e-3 * torch.eye(6), BALANCERS[kind].init(NAMES[:6]))
    torch.testing.assert_close(weight_T, torch.full((6,), expected), rtol=1e-4, atol=0)
    assert state["fallbacks"] == 0


@pytest.mark.parametrize("kind", BALANCERS)
def test_a_task_alone_is_trained_as_if_by_itself(kind):
    balancer = BALANCERS[kind]
    weight_T, _ = weigh(balancer, torch.tensor([0.3]), torch.tensor([[4e-6]]), balancer.init(NAMES[:1]))
    assert weight_T.tolist() == [pytest.approx(OPTIONS["static"]["weights"]["task0"] if kind == "static" else 1.0)]


@pytest.mark.parametrize("kind", [kind for kind in GRAM if kind not in DRAWN])
@pytest.mark.parametrize("copies", [2, 3])
def test_equal_tasks_get_equal_weights(kind, copies):
    grads_TN = gradients(5, 2, conflict=0.5)
    grads_TN[:copies] = grads_TN[0]
    loss_T = losses(0, 5)
    loss_T[:copies] = loss_T[0]
    state = BALANCERS[kind].init(NAMES[:5])
    for _ in range(3):
        weight_T, state = weigh(BALANCERS[kind], loss_T, (grads_TN @ grads_TN.T).float(), state)
    torch.testing.assert_close(weight_T[:copies], weight_T[0].expand(copies), rtol=1e-3, atol=1e-5)
    assert int(state.get("fallbacks", 0)) == 0


@pytest.mark.parametrize("kind", [kind for kind in GRAM if BALANCERS[kind].conflict_free])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("spread", [1.0, 1e3])
def test_no_task_is_made_worse_where_that_is_promised(kind, seed, spread):
    tasks = 2 + seed
    grads_TN = gradients(tasks, seed, conflict=0.3 * (seed % 4), spread=spread)
    weight_T, state = weigh(BALANCERS[kind], torch.ones(tasks), (grads_TN @ grads_TN.T).float(), BALANCERS[kind].init(NAMES[:tasks]))
    update_N = weight_T.double() @ grads_TN
    cosine_T = grads_TN @ update_N / grads_TN.norm(dim=1) / update_N.norm()
    assert cosine_T.min() >= -1e-5
    assert state["fallbacks"] == 0


@pytest.mark.parametrize("kind", [kind for kind in SOLVED if not BALANCERS[kind].conflict_free])
def test_a_balancer_that_promises_no_peace_does_break_it(kind):
    broken = False
    for seed in range(20):
        grads_TN = gradients(6, seed, conflict=1.0, size=12)
        weight_T, _ = weigh(BALANCERS[kind], torch.ones(6), (grads_TN @ grads_TN.T).float(), BALANCERS[kind].init(NAMES[:6]))
        broken |= bool((grads_TN @ (weight_T.double() @ grads_TN)).min() < -1e-3)
    assert broken


@pytest.mark.parametrize("kind", SOLVED)
def test_weights_are_negative_only_where_that_is_said(kind):
    lowest = 0.0
    for seed in range(30):
        grads_TN = gradients(5, seed, conflict=-0.5 if seed % 2 else 0.5, size=12)
        weight_T, _ = weigh(BALANCERS[kind], torch.ones(5), (grads_TN @ grads_TN.T).float(), BALANCERS[kind].init(NAMES[:5]))
        lowest = min(lowest, float(weight_T.min()))
    assert (lowest >= 0) == BALANCERS[kind].positive


@pytest.mark.parametrize("kind", SOLVED)
@pytest.mark.parametrize("seed", range(4))
def test_the_rounding_of_the_gramian_does_not_decide(kind, seed):
    grads_TN = gradients(6, seed, size=4)  # dependent: two components of the Gramian are rounding and nothing else
    exact_TT = grads_TN @ grads_TN.T
    found, expected = (
        weigh(BALANCERS[kind], torch.ones(6), gram_TT, BALANCERS[kind].init(NAMES[:6]))[0].double() @ grads_TN
        for gram_TT in (exact_TT.float(), exact_TT)
    )
    torch.testing.assert_close(found / found.norm(), expected / expected.norm(), rtol=0, atol=5e-3)
    torch.testing.assert_close(found.norm(), expected.norm(), rtol=1e-2, atol=0)


@st.composite
def gramians(draw: st.DrawFn) -> Tensor:
    """Float32 Gramians as they come on a bad day."""
    tasks = draw(st.integers(1, 9))
    rank = draw(st.integers(0, tasks + 2))
    rows = torch.randn(tasks, rank, generator=torch.Generator().manual_seed(draw(st.integers(0, 10_000))), dtype=torch.float64)
    rows *= 10.0 ** draw(st.sampled_from([-15, -8, 0, 8, 15]))
    if draw(st.booleans()):  # from one task to the next, a factor
        rows *= (10.0 ** -draw(st.sampled_from([1, 3]))) ** torch.arange(tasks)[:, None]
    if tasks > 1 and draw(st.booleans()):
        rows[draw(st.integers(0, tasks - 1))] = draw(st.sampled_from([1.0, -1.0, 0.0, 1 + 1e-7])) * rows[0]
    gram_TT = (rows @ rows.T).float()
    noise = draw(st.sampled_from(["none", "bf16", "asymmetric", "inf", "nan", "negative"]))
    if noise == "bf16":
        gram_TT = gram_TT.bfloat16().float()
    if noise == "asymmetric":
        gram_TT = gram_TT * (1 + 1e-3 * torch.randn(tasks, tasks, generator=torch.Generator().manual_seed(7)))
    if noise in ("inf", "nan"):
        gram_TT[0, -1] = float(noise)
    if noise == "negative":
        gram_TT = gram_TT - 1e-2 * gram_TT.diagonal().max() * torch.eye(tasks)
    return gram_TT


BAD_LOSS = st.sampled_from([0.0, 1e-30, 1e30, -1.0, 0.5, 2.0, math.inf, math.nan])


@pytest.mark.parametrize("kind", BALANCERS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_whatever_comes_in_finite_weights_come_out(kind, data):
    balancer, gram_TT = BALANCERS[kind], data.draw(gramians())
    tasks = len(gram_TT)
    state = balancer.init(NAMES[:tasks])
    for _ in range(3):
        present_T = torch.tensor(data.draw(st.lists(st.booleans(), min_size=tasks, max_size=tasks)))
        loss_T = torch.tensor(data.draw(st.lists(BAD_LOSS, min_size=tasks, max_size=tasks))) * present_T
        here_TT = torch.where(present_T[:, None] & present_T, gram_TT, 0.0)
        weight_T, state = weigh(balancer, loss_T, here_TT, state, present_T)
        assert weight_T.dtype == torch.float32 and weight_T.shape == (tasks,)
        assert weight_T.isfinite().all()
        assert (weight_T[~present_T] == 0).all()
        assert not balancer.positive or (weight_T >= 0).all()
        assert reloaded(state).keys() == state.keys()


@pytest.mark.parametrize("kind", BALANCERS)
def test_after_a_bad_step_good_ones_are_weighed_as_ever(kind):
    balancer, grads_TN = BALANCERS[kind], gradients(4, 1, conflict=0.5)
    gram_TT, loss_T = (grads_TN @ grads_TN.T).float(), losses(0, 4)
    state = balancer.init(NAMES[:4])
    _, hurt = weigh(balancer, torch.full((4,), math.nan), torch.full((4, 4), math.inf), state)
    if "draws" in state:
        hurt["draws"] = state["draws"]
    for _ in range(3):
        expected, state = weigh(balancer, loss_T, gram_TT, state)
        found, hurt = weigh(balancer, loss_T, gram_TT, hurt)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", GRAM)
def test_a_gramian_that_is_not_finite_weighs_all_alike_and_is_counted(kind):
    balancer = BALANCERS[kind]
    gram_TT = torch.eye(3)
    gram_TT[0] = math.nan
    weight_T, state = weigh(balancer, torch.ones(3), gram_TT, balancer.init(NAMES[:3]))
    assert weight_T.tolist() == [1, 1, 1]
    assert state["fallbacks"] == 1
    assert weigh(balancer, torch.ones(3), torch.eye(3), state)[1]["fallbacks"] == 1


def test_a_solver_that_fails_gives_way_to_the_sum_of_unit_gradients():
    from trainer.balancers.solving import begin, solve

    def broken(tasks):
        raise RuntimeError("no")

    for solver in (broken, lambda tasks: tasks.norm_A * math.nan, lambda tasks: tasks.norm_A * 1e9):
        weight_T, state = solve(solver, torch.diag(torch.tensor([1.0, 49.0])), torch.tensor([True, True]), begin())
        torch.testing.assert_close(weight_T, torch.tensor([5.0, 5 / 7]))
        assert state["fallbacks"] == 1


@pytest.mark.parametrize("kind", SETTLED)
def test_an_absent_task_changes_nothing_for_the_others(kind):
    balancer, grads_TN, loss_T = BALANCERS[kind], gradients(5, 3, conflict=0.5), losses(0, 5)
    present_T = torch.tensor([True, False, True, True, False])
    gram_TT = (grads_TN @ grads_TN.T).float()
    absent = torch.where(present_T[:, None] & present_T, gram_TT, 0.0)
    weight_T, _ = weigh(balancer, loss_T * present_T, absent, balancer.init(NAMES[:5]), present_T)
    names = [name for name, here in zip(NAMES[:5], present_T.tolist(), strict=True) if here]
    alone_T, _ = weigh(balancer, loss_T[present_T], gram_TT[present_T][:, present_T], balancer.init(names))
    torch.testing.assert_close(weight_T[present_T], alone_T)


@pytest.mark.parametrize("kind", BALANCERS)
def test_what_is_known_of_an_absent_task_is_kept(kind):
    balancer, state = BALANCERS[kind], BALANCERS[kind].init(NAMES[:3])
    for step in range(4):
        grads_TN = gradients(3, step, conflict=0.5)
        _, state = weigh(balancer, losses(step, 3), (grads_TN @ grads_TN.T).float(), state)
    before = {name: torch.as_tensor(value) for name, value in state.items()}
    present_T = torch.tensor([True, False, True])
    for step in range(4):
        grads_TN = gradients(3, 10 + step, conflict=0.5) * present_T[:, None]
        _, state = weigh(balancer, losses(step, 3) * present_T, (grads_TN @ grads_TN.T).float(), state, present_T)
    for name, value in state.items():
        if name.endswith("_T"):
            torch.testing.assert_close(value[1], before[name][1], msg=name)
        if name.endswith("_TT"):
            torch.testing.assert_close(torch.tensor(value)[1], before[name][1], msg=name)


@pytest.mark.parametrize("kind", BALANCERS)
def test_training_goes_on_from_a_saved_state_as_if_it_had_not_stopped(kind):
    balancer = BALANCERS[kind]
    straight = resumed = balancer.init(NAMES[:4])
    for step in range(6):
        grads_TN = gradients(4, step, conflict=0.5)
        gram_TT = (grads_TN @ grads_TN.T).float()
        expected, straight = weigh(balancer, losses(step, 4), gram_TT, straight)
        found, resumed = weigh(balancer, losses(step, 4), gram_TT, reloaded(resumed))
        assert torch.equal(found, expected)
        if balancer.needs_grads:
            expected, straight = balancer.combine(grads_TN.float(), torch.ones(4, dtype=torch.bool), straight)
            found, resumed = balancer.combine(grads_TN.float(), torch.ones(4, dtype=torch.bool), resumed)
            assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", BALANCERS)
def test_weighing_leaves_its_state_and_the_global_generator_alone(kind):
    balancer, grads_TN = BALANCERS[kind], gradients(4, conflict=1.0)
    state = balancer.init(NAMES[:4])
    before, seed = reloaded(state), torch.get_rng_state()
    outcomes = [weigh(balancer, losses(0, 4), (grads_TN @ grads_TN.T).float(), state)[0] for _ in range(2)]
    if balancer.needs_grads:
        outcomes = [balancer.combine(grads_TN.float(), torch.ones(4, dtype=torch.bool), state)[0] for _ in range(2)]
    assert torch.equal(*outcomes)
    assert torch.equal(torch.get_rng_state(), seed)
    for name, value in reloaded(state).items():
        torch.testing.assert_close(value, before[name], equal_nan=True)


@pytest.mark.parametrize("kind", [*DRAWN, "grad_drop"])
def test_every_step_and_every_seed_draws_anew(kind):
    grads_TN, present_T = gradients(6, conflict=1.0, size=12), torch.ones(6, dtype=torch.bool)

    def drawn(seed: int, steps: int) -> Tensor:
        balancer = find("balancer", kind)(seed=seed)
        state = balancer.init(NAMES[:6])
        for _ in range(steps):
            if balancer.needs_grads:
                found, state = balancer.combine(grads_TN.float(), present_T, state)
            else:
                found, state = weigh(balancer, torch.ones(6), (grads_TN @ grads_TN.T).float(), state)
        return found

    assert not torch.equal(drawn(0, 1), drawn(1, 1))
    assert torch.equal(drawn(1, 3), drawn(1, 3))
    if kind != "gradvac":  # whose targets move as well
        assert not torch.equal(drawn(0, 1), drawn(0, 2))


def test_gradients_that_agree_are_all_kept_and_absent_tasks_drop_nothing():
    balancer = BALANCERS["grad_drop"]
    grads_TN = torch.tensor([[1.0, -2.0, 0.0, 1e-30], [3.0, -1.0, 0.0, 2e-30], [-9.0, 9.0, 9.0, -1.0]])
    update_N, _ = balancer.combine(grads_TN, torch.tensor([True, True, False]), balancer.init(NAMES[:3]))
    torch.testing.assert_close(update_N, torch.tensor([4.0, -3.0, 0.0, 3e-30]), rtol=1e-5, atol=0)


def test_where_gradients_disagree_one_sign_is_kept_as_often_as_it_is_strong():
    balancer = BALANCERS["grad_drop"]
    grads_TN = torch.tensor([[3.0], [-1.0]]).expand(2, 20_000)
    update_N, _ = balancer.combine(grads_TN, torch.tensor([True, True]), balancer.init(NAMES[:2]))
    assert set(update_N.tolist()) == {3.0, -1.0}
    assert (update_N > 0).float().mean() == pytest.approx(0.75, abs=0.02)
