"""What every sync promises: state in, state out, number by number, and the same however parameters are cut."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from trainer.catalog import CATALOG, find
from trainer.parts import Sync

SYNCS = sorted(CATALOG["sync"])


def made(kind: str, **changes: object) -> Sync:
    return find("sync", kind)(of="maker", **changes)


def walk(sync: Sync, steps: list[Tensor]) -> dict[str, object]:
    state = sync.init({"models.maker.w": steps[0].clone()})
    for w in steps[1:]:
        state = sync.follow({"models.maker.w": w}, state)
    return state


@pytest.fixture
def steps() -> list[Tensor]:
    return list(torch.randn(40, 24, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("kind", SYNCS)
def test_pieces_of_a_parameter_are_followed_as_the_whole_is(kind: str, steps: list[Tensor]) -> None:
    whole = walk(made(kind), steps)["models.maker.w"]
    cut = [walk(made(kind), [w[part] for w in steps])["models.maker.w"] for part in (slice(0, 7), slice(7, 24))]
    assert torch.equal(torch.cat(cut), whole)


@pytest.mark.parametrize("kind", SYNCS)
def test_a_state_that_was_saved_goes_on_as_if_it_had_not_been(kind: str, steps: list[Tensor]) -> None:
    sync = made(kind)
    state = walk(sync, steps[:20])
    kept = {name: v.clone() if isinstance(v, Tensor) else json.loads(json.dumps(v)) for name, v in state.items()}
    for w in steps[20:]:
        kept = sync.follow({"models.maker.w": w}, kept)
    assert torch.equal(kept["models.maker.w"], walk(sync, steps)["models.maker.w"])


@pytest.mark.parametrize("kind", SYNCS)
def test_parameters_are_read_only(kind: str, steps: list[Tensor]) -> None:
    before = [w.clone() for w in steps]
    walk(made(kind), steps)
    assert all(torch.equal(a, b) for a, b in zip(before, steps, strict=True))


def test_an_average_is_what_the_formula_says(steps: list[Tensor]) -> None:
    expected = steps[0].double()
    for n, w in enumerate(steps[1:]):
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * w.double()
    found = walk(made("ema", decay=0.9), steps)
    torch.testing.assert_close(found["models.maker.w"], expected.float())
    assert made("ema", publish=False).published(found) == {}
    assert list(made("ema").published(found)) == ["models.maker.w"]
