"""What a generator, its critic, their noise and their metrics promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn.functional import conv2d, leaky_relu

from trainer import noise
from trainer.catalog import find
from trainer.joint import Joint, build
from trainer.nets import Canvas, Critic
from trainer.parts import ROW
from trainer.spec import JointSpec

FITTED: dict[str, Any] = {
    "image": {"kind": "image", "shape": [1, 8, 8], "dtype": "uint8", "mean": [0.4], "std": [0.3]},
    "label": {"kind": "category", "shape": [], "dtype": "int32", "classes": ["a", "b", "c"]},
}
METRICS = ["frechet", "manifold_precision", "manifold_recall"]


def game(loss: str = "hinge", **penalty: float) -> tuple[JointSpec, Joint]:
    sides = {"maker": "maker", "critic": "critic", "condition": ["label"], "loss": loss}
    spec = JointSpec.model_validate({
        "name": "laws",
        "data": {"rows": {"kind": "made:rows", "columns": {"image": {"kind": "image", "shape": [1, 8, 8]}, "label": "category"}}},
        "models": {"maker": {"kind": "conv_generator", "shape": [1, 8, 8], "latent": 4, "channels": [8], "groups": 2},
                   "critic": {"kind": "conv_critic", "channels": [4], "spectral_norm": False}},
        "tasks": {"spot": {"data": "rows", "objective": {"kind": "gan_spot", **sides, **penalty}, "target": "image", "metrics": []},
                  "fool": {"data": "rows", "objective": {"kind": "gan_fool", **sides}, "target": "image", "metrics": ["frechet"]}},
        "phases": {"spot": {"tasks": ["spot"], "steps": 1}, "fool": {"tasks": ["fool"], "steps": 1}},
    })  # fmt: skip
    return spec, build(spec, {"rows": FITTED}).train()


def rows(count: int = 9) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, label = torch.randn(count, 1, 8, 8, generator=generator), torch.randint(-1, 3, (count,), generator=generator)
    return {"image": image, "label": label, ROW: torch.arange(100, 100 + count)}


def loss(joint: Joint, task: str, columns: dict[str, Tensor]) -> Tensor:
    return joint([task], {"rows": (columns, {})})[0]  # type: ignore[return-value]


SPOTS = [("hinge", {}), ("non_saturating", {"r1": 2.0}), ("wasserstein", {"gradient_penalty": 10.0})]


@pytest.mark.parametrize(("kind", "penalty"), SPOTS)
def test_what_the_critic_minimises_sends_nothing_to_the_generator(kind: str, penalty: dict[str, float]) -> None:
    spec, joint = game(kind, **penalty)
    loss(joint, "spot", rows()).backward()
    assert {name.split(".")[1] for name, p in joint.named_parameters() if p.grad is not None and p.grad.any()} == {"critic"}
    assert spec.learning("spot")[0] == {"critic"} and spec.learning("fool")[0] == {"maker"}


@pytest.mark.parametrize("task", ["spot", "fool"])
@pytest.mark.parametrize(("kind", "penalty"), SPOTS)
def test_losses_of_some_rows_and_of_the_others_add_up(kind: str, penalty: dict[str, float], task: str) -> None:
    _, joint = game(kind, **penalty)
    whole, columns = loss(joint, task, rows()), rows()
    parts = [loss(joint, task, {name: x[part] for name, x in columns.items()}) for part in (slice(0, 2), slice(2, 9))]
    torch.testing.assert_close(sum(parts), whole)
    assert whole.dtype == torch.float32


@pytest.mark.parametrize("kind", ["hinge", "non_saturating", "wasserstein"])
def test_each_side_gains_by_going_down_its_own_loss(kind: str) -> None:
    """The critic then tells better, and the generator is taken for real more often."""
    for task, side in (("spot", "critic"), ("fool", "maker")):
        _, joint = game(kind)
        params = list(joint.model(side).parameters())
        columns, other = rows(), {"spot": "fool", "fool": "spot"}[task]
        theirs, mine = loss(joint, other, columns), loss(joint, task, columns)
        for p, gradient in zip(params, torch.autograd.grad(mine, params), strict=True):
            p.data -= 1e-4 * gradient
        assert loss(joint, task, columns) < mine
        assert loss(joint, other, columns) > theirs


def test_penalties_need_no_gradients_around_them_and_zero_three_is_told() -> None:
    _, joint = game("wasserstein", gradient_penalty=10.0)
    expected = loss(joint, "spot", rows())
    with torch.no_grad():
        torch.testing.assert_close(loss(joint, "spot", rows()), expected.detach())
    spot = find("objective", "gan_spot")
    assert spot(maker="m", critic="c", gradient_penalty=1).double_backward and spot(maker="m", critic="c", r1=1).double_backward
    assert not spot(maker="m", critic="c").double_backward


def test_noise_belongs_to_rows_whatever_is_asked_beside_them() -> None:
    row_B = torch.tensor([7, 3, 2**62, 3])
    found = noise.normal(row_B, 5, "fool")
    for i, row in enumerate(row_B):
        assert torch.equal(noise.normal(row[None], 5, "fool")[0], found[i])
    assert torch.equal(found[1], found[3])
    assert torch.equal(noise.normal(row_B, 3, "fool"), found[:, :3])
    assert not torch.equal(noise.normal(row_B, 5, "spot"), found)
    assert noise.normal(row_B[:0], 5, "fool").shape == (0, 5)


@pytest.mark.parametrize("first", [0, 2**61])
def test_noise_of_rows_that_follow_one_another_is_normal_and_independent(first: int) -> None:
    found_BW = noise.normal(torch.arange(first, first + 4000), 8, "x").numpy()
    assert stats.kstest(found_BW.ravel(), "norm").pvalue > 1e-3
    joined = np.concatenate([found_BW[:-1], found_BW[1:], noise.normal(torch.arange(first, first + 3999), 8, "y").numpy()], 1)
    correlated = np.corrcoef(joined.T) - np.eye(24)
    assert np.abs(correlated).max() < 5 / np.sqrt(4000)


def settled(passes: int) -> tuple[Critic, Tensor, Tensor]:
    """A critic whose spectral norms have been found by power iteration, and a batch."""
    torch.manual_seed(0)
    critic = Critic(1, [6, 8], 2, [3], spectral=True)
    image, label = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, -1])
    for _ in range(passes):
        critic(image, label)
    return critic, image, label


def test_spectral_norms_are_one_after_some_passes_and_rest_in_evaluation() -> None:
    critic, image, label = settled(30)
    critic.eval()
    for weight in (critic.blocks[0].weight, critic.blocks[2].weight, critic.score.weight, critic.fit.weight):
        assert float(torch.linalg.matrix_norm(weight.detach().flatten(1), 2)) == pytest.approx(1, abs=1e-2)
    before = {name: value.clone() for name, value in critic.state_dict().items()}
    assert torch.equal(critic(image, label), critic(image, label))
    assert all(torch.equal(value, before[name]) for name, value in critic.state_dict().items())


def test_a_critic_divides_weights_by_their_largest_singular_value_and_adds_what_the_class_projects() -> None:
    critic, image, label = settled(300)

    def whole(module: Any) -> Tensor:
        weight: Tensor = module.parametrizations.weight.original
        return weight / torch.linalg.svdvals(weight.flatten(1))[0]

    x = image
    for block, stride in ((critic.blocks[0], 1), (critic.blocks[2], 2)):
        x = leaky_relu(conv2d(x, whole(block), block.bias, stride, 1), 0.2)
    seen = x.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5)).flatten(1)
    told = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])  # a class that is missing says nothing
    expected = seen @ whole(critic.score).T + critic.score.bias + (seen * (told @ whole(critic.fit).T)).sum(1, keepdim=True)
    torch.testing.assert_close(critic.eval()(image, label), expected, atol=1e-4, rtol=1e-4)


def test_a_canvas_gives_pixels_between_black_and_white() -> None:
    image = Canvas([2, 3, 4], [0.2, 0.5], [0.1, 0.4])(torch.randn(5, 24) * 100)
    value = image * torch.tensor([0.1, 0.4])[:, None, None] + torch.tensor([0.2, 0.5])[:, None, None]
    assert image.shape == (5, 2, 3, 4)
    assert -1e-5 <= float(value.min()) < 0.01 and 0.99 < float(value.max()) <= 1 + 1e-5


def features(count: int = 150, width: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(count, width, generator=generator) @ torch.randn(width, width, generator=generator)
    real = 2 * torch.randn(count, width, generator=generator) + 0.5
    made[:, 3:4] = 0  # a unit that is never active
    return made, real


def test_the_frechet_distance_is_that_of_scipy_and_of_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Given(torch.nn.Module):
        num_features = 12

        def forward(self, x: Tensor) -> Tensor:
            return x

    made, real = features()
    found = find("metric", "frechet")().compute(made, real, 0)
    reference = FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    reference.update(made.double(), real=False)
    reference.update(real.double(), real=True)
    assert found == pytest.approx(float(reference.compute()), rel=1e-9)
    a, b = made.double().numpy(), real.double().numpy()
    # a little noise on the unit that is never active: scipy's root is not defined for a singular product
    product = (np.cov(a.T) + 1e-12 * np.eye(12)) @ np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * np.real(linalg.sqrtm(product)))
    assert found == pytest.approx(expected, rel=1e-5)
    assert find("metric", "frechet")().compute(real, real, 0) == pytest.approx(0, abs=1e-6)


def test_resamples_of_the_distance_scatter_as_the_bootstrap_does_but_about_the_distance() -> None:
    made, real = features()
    metric = find("metric", "frechet")()
    count_RN = torch.tensor(np.random.default_rng(0).multinomial(150, np.full(150, 1 / 150), 300), dtype=torch.float32)
    found = metric.resampled(made, real, 0, count_RN)
    drawn = torch.tensor([metric.compute(*(x[torch.repeat_interleave(c.long())] for x in (made, real)), 0) for c in count_RN])
    value = metric.compute(made, real, 0)
    assert float(found.std()) == pytest.approx(float(drawn.std()), rel=0.15)
    assert abs(float(found.mean()) - value) < float(found.std()) / 4 < abs(float(drawn.mean()) - value)
    assert float(np.corrcoef(found, drawn)[0, 1]) > 0.9


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_counted_as_scikit_learn_finds_neighbours(k: int) -> None:
    made, real = features(width=3)

    def share(points: Tensor, among: Tensor) -> float:
        reach = NearestNeighbors(n_neighbors=k + 1).fit(among).kneighbors(among)[0][:, -1]
        apart = np.linalg.norm(points.numpy()[:, None] - among.numpy()[None], axis=2)
        return float((apart <= reach).any(1).mean())

    for kind, expected in (("manifold_precision", share(made, real)), ("manifold_recall", share(real, made))):
        assert 0 < expected < 1
        assert find("metric", kind)(k=k).compute(made, real, 0) == pytest.approx(expected)
        assert find("metric", kind)(k=k).compute(real, real, 0) == 1


@pytest.mark.parametrize("kind", METRICS)
def test_every_row_once_is_the_metric_itself_and_too_few_rows_are_none(kind: str) -> None:
    metric, (made, real) = find("metric", kind)(), features(30, 4)
    found = metric.resampled(made, real, 0, torch.ones(2, 30))
    assert found.tolist() == pytest.approx([metric.compute(made, real, 0)] * 2)
    for few in (0, 1):
        assert np.isnan(metric.compute(made[:few], real[:few], 0))
        assert metric.resampled(made[:few], real[:few], 0, torch.ones(3, few)).isnan().all()
    made[2] = torch.inf
    assert np.isnan(metric.compute(made, real, 0))
