"""One step on one rank, with an engine that only records what it is asked; several ranks are in tests/dist."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from training_inputs import document

from trainer.catalog import find
from trainer.parts import Balancer, State
from trainer.step import joint_step
from trainer.world import World

SPEC = document()
WORLD = World(0, 1, 0, torch.device("cpu"))


class Recorder:
    """Sums of losses that are plain parameters, so that their gradients are the factors they were given."""

    def __init__(self, sums: list[list[float]]) -> None:
        self.sums = [torch.tensor(values, requires_grad=True) for values in sums]
        self.seen: list[list[str]] = []
        self.boundaries: list[tuple[float, bool]] = []

    def losses(self, tasks: list[str], batches: Any) -> Tensor:
        self.seen.append(list(tasks))
        return self.sums[len(self.seen) - 1] * 1

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr: float, boundary: bool) -> None:
        self.boundaries.append((lr, boundary))


class Watched(Balancer):
    """Weighs 2 where present, and keeps what it was shown."""

    kind: str = "watched"

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        return 2.0 * present_T, {"shown": [*state.get("shown", []), (loss_T.tolist(), present_T.tolist())]}


def batches(plant: list[int], height: list[float], hard: list[int]) -> Any:
    return {"plants": ({}, {"plant": torch.tensor(plant), "height": torch.tensor(height)}), "stones": ({}, {"hard": torch.tensor(hard)})}


NAN = float("nan")


def step(engine: Recorder, present: list[int], micro: list[Any], balancer: Any = None, asks: tuple[bool, bool] = (False, False)) -> Any:
    balancer = balancer or find("balancer", "equal")()
    return joint_step(engine, WORLD, dict(SPEC.tasks), tuple(present), micro, balancer, balancer.init(list(SPEC.tasks)), 0.5, asks)  # type: ignore[arg-type]


def test_each_sum_is_divided_by_the_rows_that_count() -> None:
    engine = Recorder([[8.0, 3.0, 5.0]])
    log, _ = step(engine, [0, 1, 2], [batches([0, 1, -1, 2], [NAN, 1.0, NAN, NAN], [1, 1])])
    torch.testing.assert_close(engine.sums[0].grad, torch.tensor([1 / 3, 1.0, 1 / 2]))
    assert log.total_T.tolist() == [8, 3, 5]
    assert log.count_T.tolist() == [3, 1, 2]
    assert log.weight_T.tolist() == [1, 1, 1]
    assert engine.boundaries == [(0.5, True)]


def test_micro_batches_share_the_count_of_the_whole_step() -> None:
    engine = Recorder([[4.0, 0.0, 1.0], [2.0, 3.0, 1.0]])
    micro = [batches([0, 1, 1], [NAN, NAN, NAN], [1]), batches([-1, 1], [1.0, 2.0], [0, 1, 1])]
    log, _ = step(engine, [0, 1, 2], micro, Watched())
    for sums in engine.sums:
        torch.testing.assert_close(sums.grad, 2 / torch.tensor([4.0, 2.0, 4.0]) * torch.tensor([1.0, float(sums is engine.sums[1]), 1.0]))
    assert log.total_T.tolist() == [6, 3, 2]
    assert log.count_T.tolist() == [4, 2, 4]
    assert log.weight_T.tolist() == [2, 2, 2]
    assert [boundary for _, boundary in engine.boundaries] == [False, True]


def test_a_balancer_is_not_shown_a_loss_where_no_row_has_a_target() -> None:
    engine = Recorder([[4.0, 0.0, 1.0]])
    log, state = step(engine, [0, 1, 2], [batches([0, 1], [NAN, NAN], [1])], Watched())
    assert state["shown"] == [([2.0, 0.0, 1.0], [True, False, True])]
    assert log.weight_T.tolist() == [2, 0, 2]


@pytest.mark.parametrize("present", [[0], [2], [0, 2], [1, 2]])
def test_absent_tasks_are_neither_computed_nor_weighed(present: list[int]) -> None:
    engine = Recorder([[1.0] * len(present)])
    log, state = step(engine, present, [batches([0, 1], [1.0, 2.0], [1])], Watched())
    assert engine.seen == [[list(SPEC.tasks)[t] for t in present]]
    absent = [t for t in range(3) if t not in present]
    assert all(values[t] == 0 for values in (log.total_T, log.count_T, log.weight_T) for t in absent)
    assert [t for t, there in enumerate(state["shown"][0][1]) if there] == present


@pytest.mark.parametrize("asks", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("micros", [1, 2])
def test_what_a_rank_asks_is_in_the_log(asks: tuple[bool, bool], micros: int) -> None:
    log, _ = step(Recorder([[1.0, 1.0, 1.0]] * micros), [0, 1, 2], [batches([0], [1.0], [1])] * micros, asks=asks)
    assert (log.asked > 0).tolist() == list(asks)


def test_no_graph_is_kept() -> None:
    log, _ = step(Recorder([[1.0, 1.0, 1.0]]), [0, 1, 2], [batches([0], [1.0], [1])])
    assert not any(getattr(log, name).requires_grad for name in ("total_T", "count_T", "weight_T", "asked"))
