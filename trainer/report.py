"""The report: everything a run found out, as one HTML page that needs nothing but itself.

No script, no font, no picture is fetched, and a content security policy inside the page forbids it, so that names
and values taken from a document or a dataset are inert. The same inputs always give the same page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

from trainer import report_tasks, report_work, wording
from trainer.report_data import dataset
from trainer.report_pulls import pulls

if TYPE_CHECKING:
    from trainer.results import Result

Json = dict[str, Any]
_PACKAGES = ("torch", "deepspeed", "torchmetrics", "pyarrow", "kfp", "numpy")


def render(
    spec: Json, verdict: Json, runs: Json, data: Mapping[str, Json], scores: Mapping[str, Json], timings: Sequence[Json], outcome: Json
) -> str:
    """The page, from the files that docs/architecture.md describes; what is absent is left out of the page.

    Args:
        spec: the resolved document.
        verdict: verdict.json.
        runs: `{"joint": [run per seed], "independent": {task: [run per seed]}}`, a run being `{"result": result.json, "history": records}`.
        data: per dataset `{"manifest", "report", "fitted"}`, each the JSON of that name.
        scores: scores.json per task.
        timings: `{"step", "seconds", "reused"}` in the order the steps ran.
        outcome: what came of it: `published` (URI or null), `promoted` (whether it is the champion now), `reasons`
            (a list: why nothing was published), `versions` ({package: version}).
    """
    import yaml
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(count=wording.count, seconds=wording.seconds, share=wording.share, value=wording.value)
    return pages.get_template("report.html").render(
        name=spec["name"],
        verdict=verdict,
        outcome=outcome,
        confidence=f"{100 * wording.number(verdict.get('confidence', 0.95)):g} %",
        multiseed=int(verdict.get("seeds") or 1) > 1,
        independent=any(entry.get("vs_independent") for entry in verdict["tasks"].values()),
        facts=_facts(spec, verdict, runs, data),
        tasks=[report_tasks.task(name, entry, runs, scores.get(name) or {}) for name, entry in verdict["tasks"].items()],
        gate=verdict.get("gate") or {"passed": True, "checks": []},
        cost=report_work.cost(verdict),
        weights=report_work.weights(runs),
        pulls=pulls(runs, verdict, spec),
        datasets=[dataset(name, entry, spec) for name, entry in data.items()],
        timings=report_work.timings(timings),
        stages=report_work.stages(runs),
        spec=yaml.safe_dump(spec, sort_keys=False, allow_unicode=True, width=110),
        environment=_environment(runs, outcome),
    )


def write_report(root: str, **inputs: Any) -> Result:
    """`render(**inputs)` as a result below `root`: the file `report.html`."""
    from trainer.results import key_of, keyed

    inputs["outcome"] = {"versions": versions(), **inputs["outcome"]}

    def make(folder: Path) -> None:
        (folder / "report.html").write_text(render(**inputs), encoding="utf-8")

    return keyed(root, "report", key_of("report", inputs), make)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on most."""
    found = {"python": python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _first(runs: Json) -> Json:
    return runs["joint"][0]["result"] if runs.get("joint") else {}


def _facts(spec: Json, verdict: Json, runs: Json, data: Mapping[str, Json]) -> list[str]:
    rows = sum(sum((entry.get("manifest") or {}).get("rows", {}).values()) for entry in data.values())
    ranks = _first(runs).get("ranks")
    return [
        wording.many(len(verdict["tasks"]), "task"),
        wording.many(len(spec.get("models") or ()), "model"),
        f"{wording.many(len(data), 'dataset')}, {rows:,} rows" if data else "",
        wording.many(int(verdict.get("seeds") or 1), "seed"),
        f"{wording.many(ranks, 'rank')} on {_first(runs).get('device', '?')}" if ranks else "",
    ]


def _environment(runs: Json, outcome: Json) -> list[tuple[str, str]]:
    result = _first(runs)
    own = {"device": result.get("device"), "ranks": result.get("ranks"), **(result.get("versions") or {})}
    return [(name, str(found)) for name, found in {**own, **(outcome.get("versions") or {})}.items() if found is not None]
