from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from training_inputs import TASKS, document

from trainer.joint import build, head, seed_of

X = {"kind": "vector", "shape": [6], "dtype": "float32"}
FITTED: Any = {
    "plants": {"x": X, "plant": {"kind": "category", "shape": [], "classes": ["a", "b", "c"]}, "height": {"kind": "number", "shape": []}},
    "stones": {"x": X, "hard": {"kind": "category", "shape": [], "classes": [False, True]}},
}
SPEC = document()


def batches(rows: int = 5) -> Any:
    torch.manual_seed(1)
    plants = ({"x": torch.randn(rows, 6)}, {"plant": torch.randint(-1, 3, (rows,)), "height": torch.randn(rows)})
    return {"plants": plants, "stones": ({"x": torch.randn(rows, 6)}, {"hard": torch.randint(2, (rows,))})}


def test_initial_weights_depend_on_the_seed_and_the_name_alone() -> None:
    """So joint and independent training start from the same weights, whatever else is in the document."""
    torch.manual_seed(123)
    whole = build(SPEC, FITTED, seed=3).state_dict()
    alone = build(document(tasks={"hard": TASKS["hard"]}), FITTED, seed=3).state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in alone.items())
    other = build(SPEC, FITTED, seed=4).state_dict()
    assert not any(torch.equal(value, whole[name]) for name, value in other.items())
    heads = build(document(tasks={"one": TASKS["plant"], "two": TASKS["plant"]}), FITTED, seed=3).heads
    assert not torch.equal(heads["one"].weight, heads["two"].weight)


def test_building_leaves_the_random_numbers_of_others_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build(SPEC, FITTED)
    assert torch.equal(torch.rand(3), expected)


def test_losses_come_in_the_order_that_was_asked_for() -> None:
    module = build(SPEC, FITTED)
    total_T = module(["plant", "height", "hard"], batches())
    assert torch.equal(module(["hard", "plant", "height"], batches()), total_T[[2, 0, 1]])
    total, outputs = module(["hard", "plant"], batches(), outputs=True)
    assert torch.equal(total, total_T[[2, 0]])
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {"hard": (5, 2), "plant": (5, 3)}


def test_tasks_with_the_same_inputs_share_one_pass_of_the_trunk() -> None:
    module, calls = build(SPEC, FITTED), []
    module.models["trunk"].register_forward_hook(lambda *_: calls.append(1))
    module(["plant", "height"], batches())
    assert len(calls) == 1
    module(["plant", "height", "hard"], batches())
    assert len(calls) == 3


def test_a_frozen_model_stays_in_evaluation_mode() -> None:
    module = build(document(models={"trunk": {"kind": "mlp", "hidden": [4], "dropout": 0.5}}), FITTED)
    assert module.train().models["trunk"].training
    module.models.requires_grad_(False)
    assert not module.train().models["trunk"].training
    assert module.heads.training
    assert not module.eval().heads.training


def test_a_model_without_parameters_fits_heads_of_low_precision() -> None:
    module = build(SPEC, FITTED)
    module.models["trunk"] = nn.Linear(6, 7, bias=False)
    module.models["trunk"].weight = None  # type: ignore[assignment]
    module.models["trunk"].forward = lambda x: torch.cat([x, x[:, :1]], 1).float()  # type: ignore[method-assign]
    total_T = module.bfloat16()(["plant", "hard"], batches())
    assert total_T.dtype == torch.float32
    assert total_T.isfinite().all()


@pytest.mark.parametrize(("widths", "layers"), [([4, 2], ["Linear"]), ([4, 3, 2], ["Linear", "GELU", "Linear"])])
def test_a_head_is_linear_layers_with_gelu_between(widths: list[int], layers: list[str]) -> None:
    module = head(widths)
    assert [type(part).__name__ for part in module.modules() if not isinstance(part, nn.Sequential)] == layers
    assert module(torch.zeros(3, 4)).shape == (3, 2)


def test_seeds_are_63_bits_of_what_they_are_made_from() -> None:
    found = [seed_of(0, "a"), seed_of(0, "b"), seed_of(1, "a"), seed_of("0", "a")]
    assert len(set(found)) == 4
    assert seed_of(0, "a") == found[0]
    assert all(0 <= seed < 2**63 for seed in found)
