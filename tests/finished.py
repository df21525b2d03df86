"""What a pipeline leaves below its root when it is done, for tests of those who look for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from report_inputs import report_inputs

from trainer.outcomes import record
from trainer.results import keyed


def verdict(root: str) -> str:
    """Key of a verdict on two tasks."""

    def make(folder: Path) -> None:
        judged = report_inputs(tasks=2)["verdict"]
        judged["tasks"] = {
            name: {"champion_status": "none", "champion_note": "no model is promoted"} | task for name, task in judged["tasks"].items()
        }
        judged["cost"]["joint"] |= {"wall_seconds": 900.0}
        (folder / "verdict.json").write_text(json.dumps(judged))

    return keyed(root, "compare", "judged", make).key


def finished(root: str, key: str, run: str, published: bool = True) -> dict[str, Any]:
    """The outcome of a run, as its last step leaves it."""
    reasons = [] if published else ["price is worse by 0.3"]
    uri = f"{root}/models/tiny/versions/1-1" if published else ""
    said = {"published": uri, "version": "1-1" if published else "", "promoted": published, "reasons": reasons}
    return record(root, key, run, name="tiny", verdict=verdict(root), report="page", **said)
