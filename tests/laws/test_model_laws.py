"""What every model promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainer.catalog import CATALOG, find

VECTOR = {"kind": "vector", "shape": [3], "dtype": "float32"}
NUMBER = {"kind": "number", "shape": [], "dtype": "float32"}
CATEGORY = {"kind": "category", "shape": [], "dtype": "int32", "classes": ["a", "b", "c"]}
IMAGE = {"kind": "image", "shape": [3, 8, 9], "dtype": "uint8"}
TEXT = {"kind": "text", "shape": [12], "dtype": "int32", "vocab_size": 50, "pad": 0}
INPUTS: dict[str, list[list[dict[str, Any]]]] = {
    "mlp": [[VECTOR], [IMAGE], [NUMBER, CATEGORY, VECTOR]],
    "conv": [[IMAGE], [IMAGE | {"shape": [1, 2, 2]}]],
    "conv_map": [[IMAGE], [IMAGE | {"shape": [1, 2, 2]}]],
    "conv_generator": [[CATEGORY], [CATEGORY, CATEGORY]],
    "conv_critic": [[IMAGE], [IMAGE, CATEGORY]],
    "text_transformer": [[TEXT]],
    "python": [[VECTOR]],
}
OPTIONS = {
    "mlp": {"hidden": [6, 5], "dropout": 0.3},
    "conv": {"channels": [4, 8], "groups": 2},
    "conv_map": {"channels": [4, 6, 8], "stride": 4, "groups": 2},
    "conv_generator": {"shape": [3, 8, 9], "latent": 4, "channels": [8, 4], "groups": 2},
    "conv_critic": {"channels": [4, 8], "spectral_norm": False},  # which takes a step of its iteration in each training pass
    "text_transformer": {"width": 8, "heads": 2, "layers": 2, "dropout": 0.3},
}
KINDS = {"python": f"{__name__}:linear"}
MODELS = [(kind, position) for kind in sorted(CATALOG["model"]) for position in range(len(INPUTS[kind]))]


class Linear(nn.Linear):
    """A model of the user's own."""


def linear(inputs: list[Mapping[str, Any]], width: int = 4) -> nn.Module:
    return Linear(inputs[0]["shape"][0], width)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """`kind: <this module>:linear`, however the tests were imported."""
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or type(sys)(__name__))
    monkeypatch.setattr(sys.modules[__name__], "linear", linear, raising=False)


def build(kind: str, position: int, seed: int = 0) -> nn.Module:
    part = find("model", kind)(**OPTIONS.get(kind, {}), **({"kind": KINDS[kind]} if kind in KINDS else {}))
    torch.manual_seed(seed)
    return part.build(INPUTS[kind][position])


def batch(kind: str, position: int, rows: int, seed: int = 0) -> list[Tensor]:
    """Inputs with gaps, as columns give them."""
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for column in INPUTS[kind][position]:
        if column["kind"] == "category":
            tensors.append(torch.randint(-1, 3, (rows,), generator=generator))
        elif column["kind"] == "text":
            tokens = torch.randint(1, 50, (rows, 12), generator=generator)
            length = torch.randint(0, 13, (rows, 1), generator=generator)
            tensors.append(tokens * (torch.arange(12) < length))
        else:
            x = torch.randn(rows, *column["shape"], generator=generator)
            if column["kind"] == "number":
                x[::3] = float("nan")
            tensors.append(x)
    return tensors


@pytest.mark.parametrize(("kind", "position"), MODELS)
def test_the_same_seed_builds_the_same_model(kind: str, position: int) -> None:
    one, same, other = (build(kind, position, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("kind", "position"), MODELS)
@settings(deadline=None, max_examples=15)
@given(rows=st.integers(1, 9), seed=st.integers(0, 99))
def test_any_number_of_rows_gives_finite_representations_of_the_width_it_says(kind: str, position: int, rows: int, seed: int) -> None:
    module = build(kind, position)
    for mode in (True, False):
        z_BD = module.train(mode)(*batch(kind, position, rows, seed))
        assert z_BD.shape[:2] == (rows, module.out_features)
        assert z_BD.dim() == (4 if find("model", kind).maps else 2)
        assert getattr(module, "makes_map", False) == bool(find("model", kind).maps)
        assert z_BD.isfinite().all()


@pytest.mark.parametrize(("kind", "position"), MODELS)
def test_evaluation_is_deterministic(kind: str, position: int) -> None:
    module, inputs = build(kind, position).eval(), batch(kind, position, 5)
    assert torch.equal(module(*inputs), module(*inputs))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(("kind", "position"), MODELS)
def test_a_row_does_not_depend_on_the_rows_beside_it(kind: str, position: int, mode: str) -> None:
    """Or the same rows over other ranks would train another model."""
    module = build(kind, position).train(mode == "train")
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.eval()
    if kind == "text_transformer":  # dropout within attention
        module.eval() if mode == "eval" else [setattr(m, "dropout", 0.0) for m in module.modules() if isinstance(m, nn.MultiheadAttention)]
    inputs = batch(kind, position, 7)
    whole = module(*inputs)
    for row in range(7):
        torch.testing.assert_close(module(*(x[row : row + 1] for x in inputs)), whole[row : row + 1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "position"), MODELS)
def test_every_parameter_learns(kind: str, position: int) -> None:
    module = build(kind, position).eval()
    z_BD = module(*batch(kind, position, 9))
    (z_BD * torch.arange(z_BD.numel()).reshape(z_BD.shape).sin()).sum().backward()
    assert {name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()} == set()


def test_padding_does_not_change_what_a_text_means() -> None:
    module = build("text_transformer", 0).eval()
    (tokens_BL,) = batch("text_transformer", 0, 6)
    tokens_BL[:, 9:] = 0
    tokens_BL[0] = 0  # an empty text
    torch.testing.assert_close(module(tokens_BL[:, :9]), module(tokens_BL), atol=1e-5, rtol=1e-4)


def test_a_missing_category_is_like_none_and_a_missing_number_like_the_mean() -> None:
    module = build("mlp", 2).eval()
    vector = torch.zeros(2, 3)
    z_BD = module(torch.tensor([float("nan"), 0.0]), torch.tensor([-1, -1]), vector)
    torch.testing.assert_close(z_BD[0], z_BD[1])
