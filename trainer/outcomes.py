"""What a whole run depends on, as one key, and what came of the runs with that key.

Written below the root by the last step of a run:

    outcomes/<key>.json        the last run that finished with this key
    outcomes/runs/<run>.json   the same, by the run's own id

and by every step of it that fails:

    causes/<run>/<step>-<pod>.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from trainer.plan import train_relevant
from trainer.prepare import data_key
from trainer.results import MANIFEST, code_version
from trainer.spec import JointSpec, digest
from trainer.stores import open_store

Json = dict[str, Any]
_STAGES = ("data", "train", "score", "compare", "report")


def data_digests(spec: JointSpec) -> dict[str, str]:
    """A digest of each dataset's sources, without preparing them: names with content hashes, or with the tags a bucket gives its objects.

    Raises:
        DataError: a source that is not there.
        StoreError: a bucket that can't be read.
    """
    return {name: dataset.fingerprint() for name, dataset in spec.data.items()}


def run_key(spec: JointSpec, digests: Mapping[str, str]) -> str:
    """The key of a run: what its models, their judgement and where they are published depend on.

    Where it runs is not part of it but for the number of ranks: another queue, image tag or launcher makes no other model. The code
    is that of this very installation.
    """
    document = spec.to_json()
    decides = {name: document[name] for name in ("name", "seed", "seeds", "data", "compare", "publish")}
    metrics = [(name, task["metrics"]) for name, task in document["tasks"].items()]
    code = {stage: code_version(stage) for stage in _STAGES}
    return digest("run", code, decides, metrics, train_relevant(spec), digests)[:24]


def planned(uri: str, spec: JointSpec, root: str, digests: Mapping[str, str]) -> list[Json]:
    """What is to be prepared, an item a dataset: the document, the digest of its source, the key of its result, and the key of the run."""
    key = run_key(spec, digests)
    items = [
        {"spec": uri, "dataset": name, "source": digests[name], "key": data_key(dataset, digests[name]), "run": key}
        for name, dataset in spec.data.items()
    ]
    return marked(items, "data", root)


def marked(items: Sequence[Json], stage: str, root: str) -> list[Json]:
    """Items with `made`: `yes` where the result is in the store, else a mark that no other run has.

    A pipeline server that caches steps by their parameters then reuses one whose result is there, and runs one whose result is
    not, be it that it was never made or that it was removed since.
    """
    store = open_store(root)
    return [
        {**item, "made": "yes" if not item["key"] or store.exists(f"results/{stage}/{item['key']}/{MANIFEST}") else uuid4().hex}
        for item in items
    ]


def record(root: str, key: str, run: str, **said: Any) -> Json:
    """Say below the root that a run has finished, and how."""
    made = {"key": key, "run": run, "finished_at": datetime.now(UTC).isoformat(timespec="seconds"), **said}
    store, data = open_store(root), json.dumps(made, indent=1).encode()
    for name in (key, *([f"runs/{run}"] if named(run) else [])):
        store.write(f"outcomes/{name}.json", data)
    return made


def outcome(root: str, key: str) -> Json | None:
    """What came of the last run with a key; None if none has finished, or if its verdict was removed."""
    return _read(root, key)


def outcome_of(root: str, run: str) -> Json | None:
    """What came of a run by its id, as `outcome`."""
    return _read(root, f"runs/{run}") if named(run) else None


def causes(root: str, run: str) -> list[Json]:
    """What steps of a run have failed of, the first of them first.

    `time` in seconds, the `step` in words, what it `said` as Markdown, the `text` of it, its `faults`; by its `name` and `fields` the
    step that is to be done is known, and where that failure was `final` it isn't done again.
    """
    store = open_store(root)
    return sorted((json.loads(store.read(key)) for key in store.list(f"causes/{run}")), key=lambda cause: cause["time"])


def named(run: str) -> bool:
    """Whether an id can be part of a key in a store."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", run) is not None


def _read(root: str, name: str) -> Json | None:
    store = open_store(root)
    try:
        found: Json = json.loads(store.read(f"outcomes/{name}.json"))
    except (FileNotFoundError, ValueError):
        return None
    return found if store.exists(f"results/compare/{found.get('verdict')}/{MANIFEST}") else None
