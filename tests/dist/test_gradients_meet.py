"""Gradient balancing gives what full Jacobians on one process in float64 give, at any world size and ZeRO stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gradients_rank import LR, ROWS, SPEC, STEPS, TASKS, fresh, rows
from safetensors.torch import load_file
from torch import Tensor

from trainer import catalog
from trainer.order import share

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]

METHODS = [kind for kind in catalog.CATALOG["balancer"] if catalog.find("balancer", kind).needs_gram]
STAGES = [0, 1, 2, 3]


def cases() -> list[dict[str, Any]]:
    found = [
        {"balancer": kind, "stage": stage, "accumulate": accumulate, "source": catalog.find("balancer", kind).default_gram}
        for kind in METHODS
        for stage in STAGES
        for accumulate in (1, 4)
    ]
    found += [
        {"balancer": "aligned_mtl", "stage": stage, "accumulate": 1, "source": s}
        for stage in STAGES
        for s in ("representation", "last_layer")
    ]
    # the layer that ZeRO-3 frees is among the shared parameters of the encoders
    found += [{"balancer": "aligned_mtl", "stage": stage, "accumulate": 1, "source": "exact", "trunk": "encoders"} for stage in STAGES]
    found += [{"balancer": "upgrad", "stage": stage, "accumulate": 4, "source": "exact", "every": 3} for stage in STAGES[1:]]
    found += [{"balancer": "upgrad", "stage": stage, "accumulate": 1, "source": "representation", "probe_every": 3} for stage in STAGES]
    # two balance points inside one model, found by the call; the last layer before each stands for it
    found += [
        {"balancer": kind, "stage": stage, "accumulate": 1, "source": catalog.find("balancer", kind).default_gram, "trunk": "encoders"}
        for kind in ("upgrad", "aligned_mtl")
        for stage in STAGES
    ]
    # the Gramian of gradients rounded to 8 bits; DeepSpeed refuses fp16 on CPUs
    found += [
        {"balancer": kind, "stage": stage, "accumulate": 1, "source": catalog.find("balancer", kind).default_gram, "precision": "bf16"}
        for kind in ("upgrad", "nash_mtl")
        for stage in STAGES[1:]
    ]
    return found


CASES = cases()


def name(case: dict[str, Any]) -> str:
    probed = "-probed" if "probe_every" in case else f"-every{case['every']}" if "every" in case else ""
    return f"{case['balancer']}-{case['source']}-zero{case['stage']}-accumulate{case['accumulate']}{probed}-{case.get('trunk', 'one')}-{case.get('precision', 'fp32')}"


@pytest.fixture(scope="module", params=[2, 4])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """Every case, trained in one process group."""
    out = tmp_path_factory.mktemp(f"ranks-{request.param}")
    (out / "cases.json").write_text(json.dumps(CASES))
    here = Path(__file__).parents[1]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr=127.0.0.1",
        f"--nproc-per-node={request.param}",
    ]
    path = os.pathsep.join([str(here), str(here.parent)])
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(
        [*torchrun, str(here / "gradients_rank.py"), str(out / "cases.json"), str(out)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return request.param, out


def reference(case: dict[str, Any], ranks: int, known: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Parameters by full Jacobians: nothing of the balance point, the engine or the step is used."""
    parts = ranks if case["accumulate"] > 1 else 1
    key = json.dumps([case["balancer"], case["source"], case.get("every"), case["accumulate"], parts, case.get("trunk")])
    if key in known:
        return known[key]
    module = fresh(case.get("trunk", "one")).double()
    trunk = module.models["m"]
    balancer = catalog.parser("balancer")(case["balancer"])
    shared, heads = list(trunk.parameters()), list(module.heads.parameters())
    optimizer = torch.optim.SGD([*shared, *heads], lr=LR, momentum=0.5)
    state, (x, y) = balancer.init(list(SPEC)), rows()
    for step in range(STEPS):
        optimizer.zero_grad()
        for micro in range(case["accumulate"]):
            parts = [share(ROWS, case["accumulate"] * ranks, micro * ranks + rank) for rank in range(ranks)]
            mine = torch.cat([torch.arange(ROWS)[part] for part in parts])
            points = trunk.encode(x[step][mine].double()) if "trunk" in case else []
            z = trunk.join(points) if points else trunk(x[step][mine].double())
            error = torch.stack(
                [(module.heads[task](z)[:, 0] - y[step][mine][:, t].double()).square().sum() for t, task in enumerate(SPEC)]
            )
            loss_T = error / ROWS
            last = [trunk.left, trunk.right] if points else [trunk.last]
            source = "last_layer" if step % case.get("every", 1) else case["source"]
            of = {"representation": points or [z], "last_layer": [p for layer in last for p in layer.parameters()], "exact": shared}[source]
            jacobian = torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(loss, of, retain_graph=True)]) for loss in loss_T])
            means = (error / len(mine)).detach().float()
            weight_T, state = balancer.weigh(means, (jacobian @ jacobian.T).float(), torch.ones(TASKS, dtype=torch.bool), state)
            on_shared = torch.autograd.grad(loss_T @ weight_T.double(), shared, retain_graph=True)
            on_heads = torch.autograd.grad(loss_T.sum(), heads)
            for p, g in zip([*shared, *heads], [*on_shared, *on_heads], strict=True):
                p.grad = g if p.grad is None else p.grad + g
        optimizer.step()
    known[key] = {n: p.detach().float() for n, p in module.named_parameters()}
    return known[key]


@pytest.fixture(scope="module")
def known() -> dict[str, dict[str, Tensor]]:
    return {}


@pytest.mark.parametrize("number", range(len(CASES)), ids=[name(case) for case in CASES])
def test_parameters_are_those_of_full_jacobians_on_one_process(number: int, trained: tuple[int, Path], known: dict[str, dict[str, Tensor]]):
    ranks, out = trained
    found = load_file(out / f"{number}.safetensors")
    wanted = reference(CASES[number], ranks, known)
    if "precision" in CASES[number]:
        plain = reference({"balancer": "equal", "source": "last_layer", "accumulate": 1}, ranks, known)
        assert _away(found, wanted) < 0.02 < 0.1 < _away(plain, wanted)
        return
    for parameter, value in wanted.items():
        torch.testing.assert_close(found[parameter], value, rtol=0, atol=2e-5, msg=lambda said, p=parameter: f"{p}: {said}")


def _away(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The distance between two models over the one that training went."""
    moved = [(found[n] - wanted[n], wanted[n] - p.detach()) for n, p in fresh().named_parameters()]
    off, way = (torch.cat([pair[side].flatten() for pair in moved]).norm().item() for side in (0, 1))
    return off / way
