"""Whether balancing pays off: every balancer against independent training and tuned scalarisation, on real data.

    python -m benchmarks.results_balancers [--quick] [--root runs/balancers] [--save docs/results/balancers.md]

Each training is a run of cotrain's own loop on one process, found again below the root by its key: what was cut off goes on. For each
seed (another split of the rows, another initialisation) every method may choose among the same learning rates, by the mean score
of its tasks on the validation rows, and is judged on the test rows with that choice. Independent training chooses a rate for each task.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import eight_tasks
from benchmarks.balancer_page import Judged, page, panels, picture
from benchmarks.common import apart, arguments, machine, publish

Json = dict[str, Any]
Scores = dict[str, float]
"""A number from 0 to 1 for each task."""

ROOT = Path(__file__).parents[1]
SPLIT = {"valid": 0.2, "test": 0.3}


@dataclass(frozen=True)
class Setting:
    """Data and tasks that all methods are tried on."""

    title: str
    document: Json
    rates: Sequence[float]
    """Learning rates that each method may choose from."""
    draws: int = 6
    """Random static weightings that are tried besides those by the size of the losses."""
    gram: str | None = None
    """Source of the Gramian instead of each method's own."""
    skip: frozenset[str] = frozenset()

    @property
    def tasks(self) -> list[str]:
        """In the order of the document."""
        return list(self.document["tasks"])


def example(name: str, **changes: Any) -> Json:
    """A document of examples/, on one process, with changes by section."""
    import yaml

    document = yaml.safe_load((ROOT / "examples" / name).read_text())
    document |= {"observe": {}, "cluster": {"processes_per_node": 1}, "compare": {"independent": True}}
    for section, change in changes.items():
        document[section] = {**document.get(section, {}), **change}
    return document


def settings() -> dict[str, Setting]:
    """By name."""
    ten = {"kind": "category", "classes": 10}
    columns = lambda **image: {"image": {"kind": "image", "size": [16, 16], **image}, "digit": ten}  # noqa: E731
    small = {"kind": "digits", "columns": columns(shape=[1, 8, 8], range=[0, 16])}
    large = {"kind": "mnist", "columns": columns(shape=[1, 28, 28], range=[0, 1])}
    reviews = example(
        "02-reviews.yaml",
        models={"encoder": {"kind": "text_transformer", "width": 32, "layers": 1, "heads": 2, "dropout": 0.1}},
        phases={"joint": {"steps": 300}},
        train={"batch": 64},
    )
    reviews["data"]["reviews"]["columns"]["text"] |= {"max_tokens": 32, "vocab_size": 2048}
    reviews["train"].pop("early_stop")
    targets = [name for name in eight_tasks.COLUMNS if name != "image"]
    eight = {
        "name": "eight-tasks",
        "data": {"digits": {"kind": "benchmarks.eight_tasks:rows", "columns": eight_tasks.COLUMNS}},
        "models": {"trunk": {"kind": "mlp", "hidden": [64, 32]}},
        "tasks": {name: {"data": "digits", "model": "trunk", "input": "image", "target": name} for name in targets},
        "phases": {"joint": {"steps": 400}},
        "train": {"optimizer": {"kind": "adamw", "lr": 1e-3, "weight_decay": 0.05}, "batch": 64, "clip": 1.0},
        "cluster": {"processes_per_node": 1},
    }
    return {
        "digits": Setting(
            "Digits: three tasks on the same rows (`examples/01-digits.yaml`)",
            example("01-digits.yaml", phases={"joint": {"steps": 400}}),
            [3e-3, 1e-2, 3e-2],
        ),
        "eight": Setting("Eight unbalanced tasks on the digits", eight, [5e-3, 1.5e-2, 5e-2]),
        "two": Setting(
            "Digits of two sources: a dataset per task (after `examples/03-two-datasets.yaml`)",
            example(
                "03-two-datasets.yaml",
                data={"small": small, "large": large},
                models={"trunk": {"kind": "conv", "channels": [8, 16], "grid": 2}},
                phases={"joint": {"steps": 200}},
                train={"batch": 32},
            ),
            [3e-3, 1e-2, 3e-2],
            draws=4,
            gram="last_layer",
            skip=frozenset({"grad_drop"}),  # their gradients never meet at the representation
        ),
        "reviews": Setting(
            "Clothing reviews: four tasks on one text (after `examples/02-reviews.yaml`)", reviews, [1e-3, 3e-3, 1e-2], draws=4
        ),
    }


class Bench:
    """Trainings of one setting and seed, and how good they are."""

    def __init__(self, setting: Setting, seed: int, root: str, steps: int | None = None) -> None:
        from trainer.prepare import prepare

        self.setting, self.seed, self.root = setting, seed, root
        self._base = json.loads(json.dumps(setting.document))
        for data in self._base["data"].values():
            data["split"] = SPLIT | {"salt": str(seed)}
        phase = self._base["phases"]["joint"]
        if steps:
            phase["steps"] = steps
        self._base["seed"] = seed
        self._base["train"] |= {"zero": 0, "validate_every": phase["steps"], "checkpoint": {"every_minutes": None}}
        spec = self._spec("equal", setting.rates[0])
        self._data, self._folders = {}, {}
        for name, part in spec.data.items():
            found = prepare(name, part, root)
            manifest = found.json("manifest.json")
            self._data[name] = {"key": found.key, "digest": manifest["digest"], "rows": manifest["rows"]}
            self._folders[name] = found.folder

    def _spec(self, balancer: Any, rate: float) -> Any:
        from trainer.check import load_spec

        document = json.loads(json.dumps(self._base))
        document["phases"]["joint"] |= {"balancer": balancer, "mixer": "all"}
        document["train"]["optimizer"]["lr"] = rate
        return load_spec(document)

    def joint(self, balancer: Any, rate: float) -> Trained:
        """All tasks together."""
        from trainer.requests import joint_requests

        return self._trained(joint_requests(self._spec(balancer, rate), self._data)[0])

    def alone(self, task: str, rate: float) -> Trained:
        """One task on the same model, with as many steps."""
        from trainer.requests import independent_requests

        requests = independent_requests(self._spec("equal", rate), self._data)
        return self._trained(next(r for r in requests if r["task"] == task))

    def _trained(self, request: Json) -> Trained:
        import torch

        from trainer.results import fetch
        from trainer.run import Run
        from trainer.world import World

        if not fetch(self.root, "train", request["key"]):
            Run(request, self.root, World(0, 1, 0, torch.device("cpu")), time.time()).run()
        found = fetch(self.root, "train", request["key"])
        assert found is not None
        return Trained(found.folder, self._folders)


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    folder: Path
    data: Mapping[str, Path]

    def _history(self) -> list[Json]:
        return [json.loads(line) for line in (self.folder / "history.jsonl").read_text().splitlines()]

    def valid(self) -> Scores:
        """At the end, on the validation rows."""
        last = [record for record in self._history() if record["split"] == "valid"][-1]
        run = json.loads((self.folder / "result.json").read_text())
        return {task: bounded(run["spec"]["tasks"][task]["metrics"][0]["kind"], value) for task, value in last["metric"].items()}

    def first_loss(self) -> dict[str, float]:
        """Mean loss of each task over the first hundredth of the steps."""
        return next(record["loss"] for record in self._history() if record["split"] == "train")

    def test(self) -> Scores:
        """On the test rows."""
        from trainer.evaluate import outputs
        from trainer.results import read_manifest
        from trainer.shards import Split
        from trainer.spec import JointSpec

        run = json.loads((self.folder / "result.json").read_text())
        spec, found = JointSpec.model_validate(run["spec"]), {}
        for task, part in spec.tasks.items():
            folder = self.data[part.data]
            split = Split(folder, read_manifest(folder), "test")
            column, fitted = spec.data[part.data].columns[part.target], run["fitted"][part.data][part.target]
            target = column.tensor(split.gather(part.target, np.arange(len(split))), fitted)
            there = target >= 0 if column.kind == "category" else target.isfinite()
            score = outputs(task, self.folder, run, split, np.flatnonzero(there))
            metric = part.metrics[0]  # type: ignore[index]
            target = target[there]
            if column.kind == "number":
                target = target * fitted["std"] + fitted["mean"]
            found[task] = bounded(metric.kind, metric.compute(score, target, len(fitted.get("classes", ()))))
        return found


def bounded(metric: str, value: float | None) -> float:
    """A score from 0 to 1: accuracy as it is, r2 as 1 / (1 + mse / var), which is 1 / (2 - r2); 0 where training diverged."""
    if value is None or not np.isfinite(value):
        return 0.0
    return 1 / (2 - value) if metric == "r2" else value


def best(candidates: Mapping[str, Trained]) -> tuple[str, Scores]:
    """The name and the test scores of the candidate with the best mean score on the validation rows."""
    mean = {name: float(np.mean(list(trained.valid().values()))) for name, trained in candidates.items()}
    name = max(mean, key=lambda n: mean[n])
    return name, candidates[name].test()


def judge(setting: Setting, bench: Bench, methods: Sequence[str], said: Callable[[str], None]) -> dict[str, tuple[str, Scores]]:
    """What each method chose and its test scores, for one seed."""
    from trainer.catalog import find

    found: dict[str, tuple[str, Scores]] = {}
    alone = {task: {f"{rate:g}": bench.alone(task, rate) for rate in setting.rates} for task in setting.tasks}
    chosen = {task: best(candidates) for task, candidates in alone.items()}
    found["independent"] = (" ".join(name for name, _ in chosen.values()), {task: scores[task] for task, (_, scores) in chosen.items()})
    said("independent")
    for method in methods:
        asks: Json = {"kind": method}
        if setting.gram and find("balancer", method).needs_gram:
            asks["gram"] = setting.gram
        candidates = {f"{rate:g}": bench.joint(asks, rate) for rate in setting.rates}
        found[method] = best(candidates)
        said(method)
        if method == "equal":
            found["static"] = _scalarised(setting, bench, candidates, found["equal"][0])
            said("static")
    return found


def _scalarised(setting: Setting, bench: Bench, equal: dict[str, Trained], rate: str) -> tuple[str, Scores]:
    """The weighted sum of the losses whose weights are tuned as well: by the size of the losses, and at random."""
    first = next(iter(equal.values())).first_loss()
    size_T = np.array([first[task] for task in setting.tasks])
    candidates = dict(equal)
    for power in (0.5, 1.0):
        for other in setting.rates:
            candidates[f"{other:g}, losses^-{power:g}"] = bench.joint(_static(setting, size_T**-power), other)
    rng = np.random.default_rng([bench.seed, len(setting.tasks)])
    for number in range(setting.draws):
        weight_T = size_T ** -rng.uniform(0, 1) * np.exp(rng.normal(size=len(size_T)))
        candidates[f"{rate}, drawn {number + 1}"] = bench.joint(_static(setting, weight_T), float(rate))
    return best(candidates)


def _static(setting: Setting, weight_T: np.ndarray) -> Json:
    """Weights of mean 1."""
    weights = (weight_T / weight_T.mean()).tolist()
    return {"kind": "static", "weights": {task: float(f"{w:.4g}") for task, w in zip(setting.tasks, weights, strict=True)}}


@cache
def all_methods() -> tuple[str, ...]:
    """Every balancer, equal first; `static` is tuned with it."""
    from trainer.catalog import CATALOG

    return ("equal", *(kind for kind in CATALOG["balancer"] if kind not in ("equal", "static")))


@dataclass
class _Progress:
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        self.done += 1
        print(f"{time.monotonic() - self.started:7.0f} s  {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Print the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--root", default="runs/balancers", help="where trainings are looked for and kept")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--settings", nargs="+", choices=list(settings()), default=list(settings()))
    parser.add_argument("--methods", nargs="+", choices=all_methods()[1:], help="instead of all")
    options = parser.parse_args()
    before = machine()
    import torch

    torch.set_num_threads(1)
    seeds, steps = (2, 20) if options.quick else (options.seeds, None)
    methods = ["equal", *(options.methods or (["upgrad", "uncertainty"] if options.quick else all_methods()[1:]))]
    progress = _Progress()
    root = str(Path(options.root).resolve())
    with apart():
        for name in options.settings:
            setting = settings()[name]
            found = []
            for seed in range(seeds):
                bench = Bench(setting, seed, root, steps)
                kept = [method for method in methods if method not in setting.skip]
                found.append(judge(setting, bench, kept, lambda text, n=name, s=seed: progress.say(f"{n}, seed {s}: {text}")))  # type: ignore[misc]
            publish("results_balancers", before, page(Judged(name, setting.title, setting.tasks, found)), options.save, name)
    if options.save:
        drawn = options.save.parent.parent / "pictures" / "balancers.svg"
        drawn.parent.mkdir(parents=True, exist_ok=True)
        drawn.write_text(picture(panels(options.save.read_text())))


if __name__ == "__main__":
    main()
