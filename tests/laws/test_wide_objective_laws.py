"""What every objective promises that reads several models: who learns from it, what counts, and that its parts add up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.catalog import CATALOG, find
from trainer.joint import Joint, build, counted
from trainer.spec import JointSpec

ROWS = 12
FITTED: dict[str, Any] = {
    "image": {"kind": "image", "shape": [1, 8, 8], "dtype": "uint8", "mean": [0.4], "std": [0.3]},
    "text": {"kind": "text", "shape": [6], "dtype": "int32", "vocab_size": 20, "pad": 0},
    "x": {"kind": "vector", "shape": [5], "dtype": "float32", "mean": [0.0] * 5, "std": [1.0] * 5},
    "label": {"kind": "category", "shape": [], "dtype": "int32", "classes": ["a", "b", "c"]},
}
PLAIN = {"data": "rows", "input": "x", "target": "label", "objective": "cross_entropy", "metrics": ["accuracy"]}
PEERS = {"one": {**PLAIN, "model": "first"}, "two": {**PLAIN, "model": "second"}, "three": {**PLAIN, "model": "third"}}
MLP = {"kind": "mlp", "hidden": [6]}
WIDE: dict[str, dict[str, Any]] = {
    "mutual_kl": {"objective": {"learner": "one", "peers": ["two", "three"], "temperature": 3.0}},
    "cross_teach": {"objective": {"learner": "one", "teachers": ["two", "three"], "confidence": 0.0}, "target": "label"},
    "distill": {"objective": {"learner": "one", "teachers": ["two", "three"]}},
    "ensemble": {"objective": {"members": ["one", "two"], "learn": True}, "target": "label"},
    "info_nce": {"objective": {"left": {"model": "vision", "input": "image"}, "right": {"model": "language", "input": "text"}}},
    "fused": {"objective": {"encoders": {"image": "vision", "text": "language"}, "how": "cross_attention", "width": 8, "heads": 2}, "target": "label"},
    "caption": {"objective": {"model": "vision", "input": "image", "width": 8, "heads": 2, "layers": 1}, "target": "text"},
}  # fmt: skip
"""Of each kind, a task that uses it. One that is not here is held to its laws by a test of its own."""
ROW_BY_ROW = ["mutual_kl", "cross_teach", "distill", "ensemble", "fused", "caption"]


def test_every_wide_objective_is_under_some_law() -> None:
    wide = {kind for kind in CATALOG["objective"] if find("objective", kind).wide}
    assert set(WIDE) <= wide


def made(kind: str) -> tuple[JointSpec, Joint]:
    said = {"data": "rows", "metrics": [], **WIDE[kind], "objective": {"kind": kind, **WIDE[kind]["objective"]}}
    columns = {"image": {"kind": "image", "shape": [1, 8, 8]}, "text": "text", "x": {"kind": "vector", "size": 5}, "label": "category"}
    text = {"kind": "text_transformer", "width": 8, "layers": 1, "heads": 2, "dropout": 0.0}
    models = {"first": MLP, "second": MLP, "third": {"kind": "mlp", "hidden": [4, 4]}, "language": text,
              "vision": {"kind": "conv", "channels": [8], "groups": 2}}  # fmt: skip
    spec = JointSpec.model_validate({
        "name": "laws", "data": {"rows": {"kind": "made:rows", "columns": columns}}, "models": models,
        "tasks": {**PEERS, "wide": said}, "phases": {"all": {"tasks": ["wide"], "steps": 1}},
    })  # fmt: skip
    return spec, build(spec, {"rows": FITTED}, ["wide"]).train()


def rows(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(1, 20, (ROWS, 6), generator=generator)
    text *= torch.arange(6) < torch.randint(4, 7, (ROWS, 1), generator=generator)  # padded at the end
    label = torch.randint(3, (ROWS,), generator=generator)
    label[::3] = -1
    image = torch.randn(ROWS, 1, 8, 8, generator=generator)
    return {"image": image, "text": text, "x": torch.randn(ROWS, 5, generator=generator), "label": label}


def loss(joint: Joint, columns: Mapping[str, Tensor]) -> Tensor:
    return joint(["wide"], {"rows": (dict(columns), {})})[0]  # type: ignore[return-value]


@pytest.mark.parametrize("kind", sorted(WIDE))
def test_only_what_it_says_it_teaches_gets_a_gradient(kind: str) -> None:
    spec, joint = made(kind)
    loss(joint, rows()).backward()
    models, heads = spec.learning("all")
    moved = {tuple(name.split(".")[:2]) for name, p in joint.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {part for family, part in moved if family == "models"} == models
    assert {part for family, part in moved if family == "heads"} <= heads


@pytest.mark.parametrize("kind", sorted(WIDE))
def test_the_sum_is_finite_float32_and_what_counts_is_known_before(kind: str) -> None:
    spec, joint = made(kind)
    columns = rows()
    total, count = loss(joint, columns), counted(spec.tasks["wide"], (columns, {}))
    assert total.dtype == count.dtype == torch.float32
    assert total.shape == count.shape == ()
    assert total.isfinite() and float(count) > 0


@pytest.mark.parametrize("kind", ROW_BY_ROW)
def test_sum_and_count_add_up_over_any_split_of_a_batch(kind: str) -> None:
    spec, joint = made(kind)
    columns = rows()
    whole = loss(joint, columns)
    parts = [{name: x[part] for name, x in columns.items()} for part in (slice(0, 1), slice(1, 7), slice(7, ROWS))]
    torch.testing.assert_close(sum(loss(joint, part) for part in parts), whole, rtol=1e-4, atol=1e-5)
    assert sum(float(counted(spec.tasks["wide"], (part, {}))) for part in parts) == float(counted(spec.tasks["wide"], (columns, {})))


@pytest.mark.parametrize("kind", sorted(WIDE))
def test_low_precision_models_give_a_float32_sum(kind: str) -> None:
    _, joint = made(kind)
    assert loss(joint.bfloat16(), rows()).dtype == torch.float32


def outputs(joint: Joint, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return joint.eval().outputs([name for name in joint.tasks if name != "wide"], columns)


def test_a_peer_is_imitated_as_scipy_would_have_it() -> None:
    from scipy.special import softmax
    from scipy.stats import entropy

    _, joint = made("mutual_kl")
    columns = rows()
    found = {name: output.detach().double().numpy() for name, output in outputs(joint, columns).items()}
    divergence = [entropy(softmax(found[peer] / 3, 1), softmax(found["one"] / 3, 1), axis=1).sum() for peer in ("two", "three")]
    assert float(loss(joint, columns).detach()) == pytest.approx(9 * sum(divergence) / 2, rel=1e-4)


def test_an_ensemble_is_the_mean_of_probabilities_and_alone_it_learns_nothing() -> None:
    spec, joint = made("ensemble")
    columns = rows()
    found = outputs(joint, columns)
    mean_BK = (found["one"].softmax(1) + found["two"].softmax(1)) / 2
    score, truth = joint.judged("wide", columns)
    torch.testing.assert_close(score, mean_BK)
    there = truth >= 0
    torch.testing.assert_close(loss(joint, columns), -mean_BK[there, truth[there]].log().sum())
    alone = spec.tasks["wide"].objective.alone()  # type: ignore[union-attr]
    assert alone.teaches() == [] and float(alone.rows(columns, "label")) == 0


def test_labels_come_from_sure_teachers_and_for_unlabelled_rows_only() -> None:
    _, joint = made("cross_teach")
    columns = rows()
    objective = joint.tasks["wide"].objective
    columns["x"][::6] *= 0.01
    found = outputs(joint, columns)
    sure, label = ((found["two"].softmax(1) + found["three"].softmax(1)) / 2).max(1)
    least = float(sure[columns["label"] < 0].median()) + 1e-6
    joint.tasks["wide"] = joint.tasks["wide"].model_copy(update={"objective": objective.model_copy(update={"confidence": least})})  # type: ignore[union-attr]
    chosen = (sure >= least) & (columns["label"] < 0)
    assert 0 < int(chosen.sum()) < int((columns["label"] < 0).sum())
    expected = torch.nn.functional.cross_entropy(found["one"][chosen], label[chosen], reduction="sum")
    torch.testing.assert_close(loss(joint, columns), expected)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_pairs_are_compared_as_the_papers_say_and_half_a_pair_is_nobodys_negative(kind: str) -> None:
    _, joint = made("info_nce")
    objective = joint.tasks["wide"].objective
    joint.tasks["wide"] = joint.tasks["wide"].model_copy(update={"objective": objective.model_copy(update={"loss_kind": kind})})  # type: ignore[union-attr]
    columns = rows()
    columns["text"][2] = 0  # no text
    columns["image"][5] = -torch.tensor(FITTED["image"]["mean"][0] / FITTED["image"]["std"][0])  # no picture
    score, truth = joint.eval().judged("wide", columns)
    assert (truth < 0).nonzero().flatten().tolist() == [2, 5]
    left, right = score[truth >= 0].unbind(1)
    cosines = left @ right.T / 0.07
    if kind == "softmax":
        own = torch.arange(len(left))
        ways = [torch.nn.functional.cross_entropy(c, own, reduction="sum") for c in (cosines, cosines.T)]
        expected = (ways[0] + ways[1]) / 2
    else:
        signs = 2 * torch.eye(len(left)) - 1
        expected = -torch.nn.functional.logsigmoid(signs * (cosines - 10)).sum()
    torch.testing.assert_close(loss(joint, columns), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["late", "cross_attention"])
def test_what_is_missing_changes_nothing_whatever_stands_in_its_place(how: str) -> None:
    spec, _ = made("fused")
    objective = spec.tasks["wide"].objective.model_copy(update={"how": how})  # type: ignore[union-attr]
    spec = spec.model_copy(update={"tasks": {**spec.tasks, "wide": spec.tasks["wide"].model_copy(update={"objective": objective})}})
    joint = build(spec, {"rows": FITTED}, ["wide"]).eval()
    nothing = torch.full((ROWS, 1, 8, 8), -FITTED["image"]["mean"][0] / FITTED["image"]["std"][0])
    columns = rows()
    both, text_only = joint.outputs(["wide"], columns)["wide"], joint.outputs(["wide"], {**columns, "image": nothing})["wide"]
    assert not torch.allclose(both, text_only)
    with torch.no_grad():  # the encoder of what is missing
        for p in joint.models["vision"].parameters():
            p.add_(1.0)
    torch.testing.assert_close(joint.outputs(["wide"], {**columns, "image": nothing})["wide"], text_only)
    neither = joint.outputs(["wide"], {**columns, "image": nothing, "text": torch.zeros_like(columns["text"])})["wide"]
    assert neither.isfinite().all()
    torch.testing.assert_close(neither, neither[:1].expand_as(neither))


def test_a_caption_is_judged_token_by_token_and_no_token_sees_those_after_it() -> None:
    _, joint = made("caption")
    columns = rows()
    joint.eval()
    text, memory = columns["text"], joint.model("vision")(columns["image"], tokens=True)
    logits = joint.head("wide")(memory, text)
    expected = torch.zeros(())
    for row, said in zip(logits, text.tolist(), strict=True):
        tokens = [token for token in said if token]
        for place, token in enumerate([*tokens, 0]):
            expected = expected - row[place].log_softmax(-1)[token]
    torch.testing.assert_close(loss(joint, columns), expected, rtol=1e-4, atol=1e-4)
    later = text.clone()
    later[:, 3:] = 7
    torch.testing.assert_close(joint.head("wide")(memory, later)[:, :4], logits[:, :4])
    score, truth = joint.judged("wide", columns)
    assert score.shape == truth.shape == (ROWS, 6)
    written = joint.head("wide").write(memory)
    first_end = [row.index(0) if 0 in row else 6 for row in written.tolist()]
    assert all(not any(row[end:]) for row, end in zip(written.tolist(), first_end, strict=True))


def test_a_caption_learns_to_say_what_is_shown() -> None:
    _, joint = made("caption")
    columns = rows()
    optimizer = torch.optim.Adam(joint.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss(joint, columns).backward()
        optimizer.step()
    score, truth = joint.eval().judged("wide", columns)
    assert find("metric", "exact_match")().compute(score, truth, 0) == 1.0
    assert find("metric", "token_accuracy")().compute(score, truth, 0) == 1.0
