"""Submit a document to Kubeflow Pipelines, once or on a schedule, and say what came of a run."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.compiled import compile_pipeline, version_of
from pipelines.kfp_client import PARAMETER_CHARS, Kfp, fits
from trainer.errors import CotrainError, Fault, GateFailed, Stopped, UserError
from trainer.flow import keep_spec, verdict
from trainer.outcomes import causes, outcome, outcome_of
from trainer.spec import JointSpec

Json = dict[str, Any]
EXPERIMENT = "cotrain"


@dataclass(frozen=True)
class Submission:
    """How a run is to be submitted."""

    root: str
    experiment: str = EXPERIMENT
    image: str | None = None
    service_account: str | None = None


@dataclass(frozen=True)
class Submitted:
    """A run that was started."""

    run: str
    url: str
    uploaded: bool
    """Whether the pipeline was uploaded for it; False where the server has this version of it."""


def remote(root: str) -> str:
    """A root that pods can reach.

    Raises:
        UserError: it is a path that means something else in every pod.
    """
    if "://" not in root and not root.startswith("/"):
        raise UserError.at(
            "--root",
            f"'{root}' is a folder of this machine",
            "give --root s3://bucket/prefix, or the full path of a volume that every step mounts",
        )
    return root


def parameters(spec: JointSpec, root: str) -> Json:
    """What a run of a document is given: the document itself, or where it is if it is longer than a run takes.

    Raises:
        UserError: it is too long, and the root is no place that this machine and the pods share.
    """
    given = {"spec": json.dumps(spec.to_json(), separators=(",", ":")), "root": root}
    if fits(given):
        return given
    if not root.startswith("s3://"):
        raise _too_long(given)
    return given | {"spec": keep_spec(spec, root)}


def _too_long(given: Json) -> UserError:
    sizes = {name: len(json.dumps(value)) for name, value in given.items()}
    longest = max(sizes, key=lambda name: sizes[name])
    return UserError.at(
        f"parameter {longest}",
        f"has {sizes[longest]:,} characters as JSON, of {PARAMETER_CHARS:,} that all parameters of a run may have together",
        "put the document where every step can read it, such as s3://, and name it by its URI; or use a --root on s3://",
    )


def submit(kfp: Kfp, how: Submission, name: str, given: Json) -> Submitted:
    """Start a run; the pipeline is uploaded if the server does not have this version of it."""
    if not fits(given):
        raise _too_long(given)
    pipeline, version, uploaded = upload(kfp, how)
    run = kfp.start(kfp.experiment(how.experiment), name, pipeline, version, given, how.service_account)
    return Submitted(run, kfp.url(run), uploaded)


def upload(kfp: Kfp, how: Submission) -> tuple[str, str, bool]:
    """Ids of the pipeline and its version, and whether it was uploaded just now."""
    text = compile_pipeline(how.image)
    return kfp.version(text, version_of(text))


def schedule(kfp: Kfp, how: Submission, name: str, given: Json, **when: Any) -> tuple[str, list[str]]:
    """Id of a schedule that was made, and those of the same name that it replaced."""
    if not fits(given):
        raise _too_long(given)
    before = [one.recurring_run_id for one in kfp.schedules() if one.display_name == name]
    pipeline, version, _ = upload(kfp, how)
    experiment = kfp.experiment(how.experiment)
    made = kfp.schedule(experiment, name, pipeline, version, params=given, service_account=how.service_account, **when)
    for one in before:
        kfp.unschedule(one)
    return made, before


def cron_of(text: str) -> str:
    """A cron expression as the server takes it: six fields, seconds first.

    Raises:
        UserError: it is none.
    """
    fields = text.split()
    if len(fields) == 5:
        fields = ["0", *fields]
    if len(fields) != 6 or not all(re.fullmatch(r"[0-9A-Za-z*/?,\-]+", field) for field in fields):
        raise UserError.at("--cron", f"'{text}' is no cron expression", "write minute, hour, day, month and weekday: --cron '30 2 * * 1-5'")
    return " ".join(fields)


def seconds_of(text: str) -> int:
    """An interval such as 90s, 30m, 6h or 7d, in seconds.

    Raises:
        UserError: it is none.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", text)
    if not found:
        raise UserError.at("--every", f"'{text}' is no interval", "write a number and s, m, h or d: --every 6h")
    return int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def time_of(option: str, text: str) -> str:
    """A time as the server takes it.

    Raises:
        UserError: it is none, or says nothing of its zone.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise UserError.at(option, f"'{text}' is no time with a zone", "write it like 2027-01-31T00:00:00Z")
    return found.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def stamped(name: str) -> str:
    """The name of a run that is like no other."""
    return f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def settled(root: str, run: Any, key: str | None = None) -> list[str]:
    """What came of a run that has ended, a line at a time.

    Args:
        root: where its results are.
        run: as the server has it.
        key: of the run, if it is known.

    Raises:
        GateFailed: it did its work, and a gate said no.
        Stopped: it was terminated.
        UserError: it failed by the user's fault.
        CotrainError: it failed in any other way, or left no word.
    """
    state = str(run.state).upper()
    if state == "CANCELED":
        raise Stopped(f"run {run.run_id} was terminated")
    if state != "SUCCEEDED":
        _failed(root, run.run_id, state)
    found = outcome_of(root, run.run_id) or (outcome(root, key) if key else None)
    if found is None:
        raise CotrainError(f"run {run.run_id} has succeeded and left no outcome below {root}: is that the root it was given?")
    lines = verdict(root, found)
    if not found["published"]:
        reasons = "\n".join(f"    {reason}" for reason in found["reasons"])
        raise GateFailed("\n".join([*lines, f"nothing was published, a gate said no:\n{reasons}"]))
    return lines


def _failed(root: str, run: str, state: str) -> None:
    found = causes(root, run)
    if not found:
        raise CotrainError(f"run {run} ended as {state} and no step said why: cotrain logs {run}")
    faults = [Fault(**fault) for cause in found for fault in cause["faults"]]
    if faults:
        raise UserError(dict.fromkeys(faults))
    raise CotrainError(f"run {run} ended as {state}; {found[0]['step']} failed first: {found[0]['text']}")


def steps(run: Any, now: datetime | None = None) -> list[tuple[str, str, float | None, list[str]]]:
    """The steps of a run in the order they began: name, state, seconds so far, pods."""
    details = (run.run_details.task_details if run.run_details else None) or []
    found = []
    for task in sorted(
        details, key=lambda task: (task.start_time or task.create_time or datetime.max.replace(tzinfo=UTC), task.display_name)
    ):
        if task.display_name in (None, "root") or task.display_name.endswith(("-driver", "-drivers")):
            continue
        pods = [task.pod_name] if task.pod_name else [child.pod_name for child in task.child_tasks or () if child.pod_name]
        ends = task.end_time if task.end_time and task.end_time.year > 1970 else now or datetime.now(UTC)
        took = (ends - task.start_time).total_seconds() if task.start_time else None
        found.append((task.display_name, str(task.state or "PENDING"), took, pods))
    return found
