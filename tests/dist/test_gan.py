"""A generator and its critic: held against a plain loop of torch; the same on any number of ranks, however sharded; resumed between turns."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import relu, softplus
from training_inputs import Trained, ask, assert_close, copy_data, on_ranks, same_bits
from training_rank import train_job

import trainer.run
from trainer import noise
from trainer.check import load_spec
from trainer.errors import Stopped
from trainer.joint import build, seed_of
from trainer.order import Order
from trainer.objectives.gan_spot import GanSpot
from trainer.requests import read_request
from trainer.results import fetch
from trainer.run import Run
from trainer.shards import Split
from trainer.spec import JointSpec
from trainer.step import joint_step
from trainer.world import World

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]

ONE = World(0, 1, 0, torch.device("cpu"))
IMAGE, BATCH, ROUNDS, TURNS, DECAY = {"kind": "image", "shape": [1, 8, 8], "range": [0, 16]}, 13, 3, 2, 0.5


def gan(
    loss: str = "hinge", zero: Any = 0, spectral: bool = True, told: bool = True, accumulate: int = 1, **penalty: float
) -> JointSpec:
    """Few rows, and batches that two ranks can't share evenly."""
    sides = {"maker": "maker", "critic": "critic", "condition": ["digit"] if told else [], "loss": loss}
    return load_spec({
        "name": "gan",
        "data": {"digits": {"kind": "digits", "rows": [0, 120], "columns": {"image": IMAGE, "digit": {"kind": "category", "classes": 10}}}},
        "models": {"maker": {"kind": "conv_generator", "shape": [1, 8, 8], "latent": 5, "channels": [8, 4], "groups": 2},
                   "critic": {"kind": "conv_critic", "channels": [4, 6], "spectral_norm": spectral}},
        "tasks": {"spot": {"data": "digits", "objective": {"kind": "gan_spot", **sides, **penalty}, "target": "image"},
                  "fool": {"data": "digits", "objective": {"kind": "gan_fool", **sides}, "target": "image"}},
        "rounds": ROUNDS,
        "phases": {"spot": {"tasks": ["spot"], "steps": TURNS},
                   "fool": {"tasks": ["fool"], "steps": 1, "syncs": [{"kind": "ema", "of": "maker", "decay": DECAY}]}},
        "train": {"batch": BATCH, "optimizer": {"kind": "sgd", "lr": 0.05}, "clip": None, "zero": zero, "accumulate": accumulate,
                  "schedule": {"kind": "constant", "warmup": 0}, "checkpoint": {"every_minutes": None}, "validate_every": 4},
        "cluster": {"processes_per_node": 1},
    })  # fmt: skip


OFFLOADED = {"stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"}
CASES = {
    **{f"hinge-{stage}": gan(zero=stage) for stage in range(4)},
    "hinge-3 offloaded": gan(zero=OFFLOADED),
    **{f"wasserstein-{stage}": gan("wasserstein", stage, spectral=False, gradient_penalty=10.0) for stage in (0, 2)},
    "wasserstein-1": gan("wasserstein", 1, spectral=False, accumulate=2, gradient_penalty=10.0),
    **{f"non_saturating-{stage}": gan("non_saturating", stage, r1=0.3) for stage in (0, 1)},
    **{f"untold-{stage}": gan("non_saturating", stage, spectral=False, told=False) for stage in (0, 3)},
}
ALONE = ["hinge-0", "wasserstein-0", "non_saturating-0", "untold-0"]
SHARED = ["hinge-0", *(label for label in CASES if label not in ALONE)]


class Games:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests = {label: ask(spec, root / "asked") for label, spec in CASES.items()}
        for where in ("one", "two"):
            copy_data(root / "asked", root / where)
        on_ranks(2, [self.job(label, "two") for label in SHARED], root / "ranks")
        for label in ALONE:
            train_job(self.job(label, "one"), ONE)

    def job(self, label: str, where: str) -> dict[str, Any]:
        return {"label": label, "root": str(self.root / where), "key": self.requests[label]["key"]}

    def trained(self, label: str, where: str) -> Trained:
        return Trained(self.root / where, self.requests[label]["key"])


@pytest.fixture(scope="module")
def games(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Games]:
    yield Games(tmp_path_factory.mktemp("games"))


@pytest.mark.parametrize("label", SHARED)
def test_two_ranks_play_the_game_that_one_process_does(games: Games, label: str) -> None:
    one, two = games.trained(f"{label.rpartition('-')[0]}-0", "one"), games.trained(label, "two")
    assert_close(two.params, one.params, atol=2e-5)
    for a, b in zip(two.losses(), one.losses(), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


def alternating(games: Games, label: str) -> dict[str, Tensor]:
    """The loop that a textbook has: plain torch, autograd.grad for both sides, float32, one process."""
    spec, request = CASES[label], games.requests[label]
    result = fetch(str(games.root / "asked"), "data", request["data"]["digits"]["key"])
    assert result is not None
    fitted, split = result.json("fitted.json"), Split(result.folder, result.json("manifest.json"), "train")
    every = np.arange(len(split))
    image, digit = (spec.data["digits"].columns[c].tensor(split.gather(c, every), fitted[c]) for c in ("image", "digit"))
    mean, std = fitted["image"]["mean"][0], fitted["image"]["std"][0]
    module = build(spec, {"digits": fitted}, seed=0)
    maker, critic = module.model("maker"), module.model("critic")
    average = {name: p.detach().double() for name, p in maker.named_parameters()}
    order = Order(len(image), 0, "digits")
    spot = spec.tasks["spot"].objective
    assert isinstance(spot, GanSpot)
    told = bool(spot.condition)
    optimizers = {side: torch.optim.SGD(side.parameters(), lr=0.05, momentum=0.9) for side in (maker, critic)}

    def made(phase: str, step: int, rows: np.ndarray) -> Tensor:
        of_rows = torch.arange(BATCH) + (seed_of(0, phase, "noise", step) >> 1)
        flat = maker(*[digit[rows]] * told, noise=noise.normal(of_rows, 5, phase, ""))
        return (torch.sigmoid(flat).view(-1, 1, 8, 8) - mean) / std

    def update(side: torch.nn.Module, total: Tensor) -> None:
        params = list(side.parameters())
        for p, gradient in zip(params, torch.autograd.grad(total / BATCH, params), strict=True):
            p.grad = gradient
        optimizers[side].step()

    def slope(x: Tensor, said: list[Tensor]) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(critic(x, *said).sum(), x, create_graph=True)[0].flatten(1)

    for turn in range(ROUNDS):
        for step in range(TURNS * turn, TURNS * (turn + 1)):
            rows = order.take(BATCH * step, BATCH)
            fake, said = made("spot", step, rows).detach(), [digit[rows]] * told
            real_B, fake_B = critic(torch.cat([image[rows], fake]), *(x.repeat(2) for x in said))[:, 0].split(BATCH)
            if spot.loss_kind == "hinge":
                total = relu(1 - real_B).sum() + relu(1 + fake_B).sum()
            elif spot.loss_kind == "wasserstein":
                of_rows = torch.arange(BATCH) + (seed_of(0, "spot", "noise", step) >> 1)
                share = torch.special.ndtr(noise.normal(of_rows, 1, "spot", "between"))[..., None, None]
                between = image[rows] * share + fake * (1 - share)
                total = fake_B.sum() - real_B.sum() + 10 * (slope(between, said).norm(dim=1) - 1).square().sum()
            else:
                total = softplus(-real_B).sum() + softplus(fake_B).sum()
                if spot.r1:
                    total = total + 0.3 / 2 * slope(image[rows], said).square().sum()
            update(critic, total)
        rows = order.take(BATCH * turn, BATCH)
        fake_B = critic(made("fool", turn, rows), *[digit[rows]] * told)
        update(maker, softplus(-fake_B).sum() if spot.loss_kind == "non_saturating" else -fake_B.sum())
        decay = min(DECAY, (1 + turn) / (10 + turn))
        average = {name: decay * average[name] + (1 - decay) * p.detach().double() for name, p in maker.named_parameters()}
    critics = {f"models.critic.{name}": value for name, value in critic.state_dict().items()}
    return {**critics, **{f"models.maker.{name}": value for name, value in average.items()}}


@pytest.mark.parametrize("loss", ["hinge", "wasserstein", "non_saturating", "untold"])
def test_both_sides_learn_what_a_plain_alternating_loop_teaches_them(games: Games, loss: str) -> None:
    found, expected = games.trained(f"{loss}-0", "one").params, alternating(games, f"{loss}-0")
    assert_close(found, {name: expected[name] for name in found}, atol=1e-6)
    assert any(name.startswith("models.critic.") for name in found)
    assert any(name.startswith("models.maker.") for name in found)


@pytest.mark.parametrize("at", [1, 2, 3, 8])
def test_a_game_that_was_stopped_between_turns_goes_on_bit_for_bit(games: Games, at: int) -> None:
    root, calls, world = copy_data(games.root / "asked", games.root / f"stopped-{at}"), 0, World(0, 1, 0, torch.device("cpu"))

    def step(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        world.stop_asked = calls == at
        return joint_step(*args, **named)

    request = read_request(str(root), games.requests["hinge-0"]["key"])
    with mock.patch.object(trainer.run, "joint_step", step), pytest.raises(Stopped):
        Run(request, str(root), world, time.time()).run()
    world.stop_asked = False
    Run(request, str(root), world, time.time()).run()
    assert same_bits(games.trained("hinge-0", f"stopped-{at}").params, games.trained("hinge-0", "one").params)
