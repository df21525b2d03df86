"""Where task gradients meet: the same Gramian and gradients however a model says so, runs, or is scaled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from balance_inputs import Sides
from torch import Tensor, nn
from training_inputs import ask, document

from trainer import catalog
from trainer.balance import Gramian
from trainer.engine import _TorchEngine
from trainer.errors import LaunchError
from trainer.joint import Joint
from trainer.points import Place
from trainer.run import Run
from trainer.spec import Task, Train
from trainer.step import StepLog, joint_step
from trainer.world import World

ROWS, WIDTH, NAMES = 12, 7, ["a", "b", "c"]
TASKS = {name: Task(data="d", model="m", input="x", target=name, objective="mse") for name in NAMES}
HERE = World(0, 1, 0, torch.device("cpu"))


class Scaled(_TorchEngine):
    """Multiplies what it differentiates as fp16's loss scaling does, and divides the gradients again before the optimiser."""

    factor = 2.0**12

    @property
    def scale(self) -> float:
        return self.factor

    def backward(self, loss: Tensor) -> None:
        (loss * self.factor).backward()

    def step(self, lr: float, boundary: bool) -> None:
        for p in self._params:
            if p.grad is not None:
                p.grad /= self.factor
        super().step(lr, boundary)


def trained(
    trunk: nn.Module, source: str, method: Any = "upgrad", engine: type[_TorchEngine] = _TorchEngine, **gram: Any
) -> tuple[Joint, StepLog]:
    """A model after one step, and what was said of that."""
    torch.manual_seed(1)
    module = Joint(TASKS, {"m": trunk}, {name: nn.Linear(8, 1) for name in NAMES})
    running = engine(module, catalog.parser("optimizer")({"kind": "sgd", "lr": 0.1}), Train(batch=ROWS, clip=None))
    balancer = catalog.parser("balancer")(method)
    batch = ({"x": torch.randn(ROWS, WIDTH)}, dict(zip(NAMES, targets(), strict=True)))
    probe = gram.pop("probe_every", None)
    made = Gramian(source, places={"m": Place(trunk, source, **gram)}, probe_every=probe)
    log, _ = joint_step(running, HERE, TASKS, [0, 1, 2], [{"d": batch}], balancer, balancer.init(NAMES), 0.1, (False, False), made)
    return module, log


def targets() -> list[Tensor]:
    """Of unequal scale, two of them at odds."""
    first, second, third = torch.randn(3, ROWS)
    return [first, third - 3 * first, 9 * second]


def sides(**args: Any) -> Sides:
    torch.manual_seed(0)
    return Sides(WIDTH, **args)


def same(left: Joint, right: Joint) -> None:
    torch.testing.assert_close(left.balance.gram_PP, right.balance.gram_PP, atol=1e-9, rtol=1e-5)
    for (name, p), q in zip(left.named_parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5, msg=lambda said, n=name: f"{n}: {said}")


@pytest.mark.parametrize("source", ["representation", "last_layer"])
def test_a_path_in_the_document_is_as_good_as_a_call_in_the_model(source):
    called, named = trained(sides(), source)[0], trained(sides(says=False), source, points=["left", "right"])[0]
    same(called, named)


def test_the_gramians_of_several_balance_points_add_up():
    both = trained(sides(says=False), "representation", points=["left", "right"])[0].balance.gram_PP
    apart = [trained(sides(says=False), "representation", points=[path])[0].balance.gram_PP for path in ("left", "right")]
    torch.testing.assert_close(both, apart[0] + apart[1])


def test_what_the_document_names_goes_before_what_the_model_says():
    named, silent = (trained(sides(says=says), "representation", points=["right"])[0] for says in (True, False))
    same(named, silent)


@pytest.mark.parametrize("kind", [kind for kind in catalog.CATALOG["balancer"] if catalog.find("balancer", kind).needs_gram])
def test_each_method_weighs_the_same_at_the_end_of_the_model_whoever_says_so(kind):
    class Ends(Sides):
        def forward(self, x: Tensor) -> Tensor:
            import trainer

            return trainer.balance_point(super().forward(x))

    torch.manual_seed(0)
    said = trained(Ends(WIDTH, says=False), "representation", kind)[0]
    same(said, trained(sides(says=False), "representation", kind)[0])


@pytest.mark.parametrize("source", ["representation", "last_layer", "exact"])
@pytest.mark.parametrize("says", [True, False], ids=["points-inside", "point-at-the-end"])
@pytest.mark.parametrize("inside", ["all", "encoders", "join"])
def test_an_activation_checkpoint_changes_neither_gramian_nor_gradients(source, says, inside):
    found, wanted = (trained(sides(says=says, checkpointed=part), source)[0] for part in (inside, ""))
    torch.testing.assert_close(found.balance.exact_PP, wanted.balance.exact_PP)
    same(found, wanted)


def test_a_reentrant_checkpoint_around_the_model_changes_nothing_at_its_output():
    for part in ("all", "encoders"):
        same(
            trained(sides(says=False, checkpointed=part, reentrant=True), "representation")[0],
            trained(sides(says=False), "representation")[0],
        )


HIDDEN = "is inside a reentrant activation checkpoint, where autograd doesn't see it"


@pytest.mark.parametrize(
    ("source", "says", "part", "what"),
    [
        ("representation", True, "encoders", "a balance point"),
        ("last_layer", False, "all", "the last shared layer"),
        ("exact", False, "encoders", "a shared parameter"),
        ("representation", True, "join", "what comes after a balance point or the last shared layer"),
    ],
)
def test_where_a_reentrant_checkpoint_hides_gradients_it_is_refused_with_the_remedy(source, says, part, what):
    with pytest.raises(LaunchError) as caught:
        trained(sides(says=says, checkpointed=part, reentrant=True), source)
    (fault,) = caught.value.faults
    assert (fault.finding, fault.remedy) == (f"{what} {HIDDEN}", "call torch.utils.checkpoint.checkpoint with use_reentrant=False")


@pytest.mark.parametrize("source", ["representation", "last_layer", "exact"])
@pytest.mark.parametrize("factor", [2.0**-4, 2.0**16])
def test_a_loss_scale_is_in_the_gradients_and_not_in_the_gramian(source, factor, monkeypatch):
    monkeypatch.setattr(Scaled, "factor", factor)
    scaled, plain = trained(sides(), source, engine=Scaled)[0], trained(sides(), source)[0]
    torch.testing.assert_close(scaled.balance.exact_PP, plain.balance.exact_PP)
    same(scaled, plain)


@pytest.mark.parametrize("method", ["upgrad", {"kind": "grad_drop", "seed": 3}, "equal"], ids=["upgrad", "grad_drop", "equal"])
@pytest.mark.parametrize("engine", [_TorchEngine, Scaled], ids=["plain", "loss-scaled"])
def test_a_look_tells_what_the_step_did_to_each_task(method, engine):
    method = ({"kind": method} if isinstance(method, str) else method) | {"probe_every": 1}
    trunk = sides(says=False)
    before = [p.detach().clone() for p in trunk.parameters()]
    log = trained(trunk, "representation", method, engine, probe_every=1)[1]
    moved = torch.cat([(q - p).flatten() for p, q in zip(before, trunk.parameters(), strict=True)])
    gradients = exact_gradients()
    cosine = torch.nn.functional.cosine_similarity(gradients[:, None], gradients[None], dim=2)
    torch.testing.assert_close(log.look.cosine_PP, cosine, atol=1e-4, rtol=1e-3)
    assert float(log.look.worse) == pytest.approx(float((gradients @ moved > 0).float().mean()))
    assert float(log.look.cosine) == pytest.approx(1.0, abs=0.2)


def exact_gradients() -> Tensor:
    """Gradients `[T, N]` of the mean losses of `trained`'s first step, on all shared parameters."""
    trunk = sides(says=False)
    torch.manual_seed(1)
    heads = [nn.Linear(8, 1) for _ in NAMES]
    x, wanted = torch.randn(ROWS, WIDTH), targets()
    rows = []
    for head, target in zip(heads, wanted, strict=True):
        found = torch.autograd.grad((head(trunk(x))[:, 0] - target).square().mean(), list(trunk.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


def test_grad_drop_may_make_a_task_worse_and_its_look_says_so():
    found = {
        float(
            trained(sides(says=False), "representation", {"kind": "grad_drop", "seed": seed, "probe_every": 1}, probe_every=1)[1].look.worse
        )
        for seed in range(12)
    }
    assert max(found) > 0
    assert {round(3 * share) for share in found} <= {0, 1, 2}


def in_the_garden(balancer: Any, **args: Any) -> dict[str, Any]:
    """The sections of a document whose model has balance points."""
    trunk = {"kind": "balance_inputs:sides", "args": args}
    return {"models": {"trunk": trunk}, "phases": {"joint": {"steps": 3, "balancer": balancer}}}


def test_a_model_of_the_users_own_trains_with_its_balance_points_by_document(tmp_path):
    said = in_the_garden("upgrad", checkpointed="encoders")
    named = in_the_garden({"kind": "upgrad", "gram": {"source": "last_layer", "point": ["left", "right"]}}, says=False)
    found = []
    for sections in (said, named):
        run = Run(ask(document(**sections), tmp_path), str(tmp_path), HERE, 0.0)
        run.run()
        found.append(run.saved.params)
    for name, p in found[0].items():
        torch.testing.assert_close(p, found[1][name], msg=lambda said, n=name: f"{n}: {said}")


def test_what_only_training_finds_is_refused_when_it_starts(tmp_path):
    gram = {"source": "last_layer", "layer": "left.1"}
    spec = document(**in_the_garden("upgrad"))
    request = ask(spec, tmp_path)
    request["spec"]["phases"]["joint"]["balancer"]["gram"] = gram
    with pytest.raises(LaunchError) as caught:
        Run(request, str(tmp_path), HERE, 0.0).run()
    (fault,) = caught.value.faults
    assert fault.place == "phases.joint.balancer.gram.layer"
    assert fault.finding == "model 'trunk' has no linear or convolutional layer 'left.1'"
    assert fault.remedy.endswith("known: join, left.0, right.0")
