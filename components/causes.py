"""Why a job on a cluster ended, or waits, as a person would say it: who failed first, how, and what to do. Pure.

Situation, logs of the pods ── cause_of ──▶ Cause ── as_markdown ──▶ the step's artifact
                                                 └── as_error ─────▶ the exception of the step
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from components.pods import Ended
from components.situation import Situation
from components.tracebacks import first_traceback, is_echo, last_lines
from trainer.errors import CotrainError, Fault, LaunchError, Stopped, UserError

Verdict = Literal["succeeded", "failed", "deleted", "waiting", "running"]
_SIGNALS = {134: "SIGABRT", 135: "SIGBUS", 136: "SIGFPE", 137: "SIGKILL", 139: "SIGSEGV", 143: "SIGTERM"}
_STOPPED = 130
_TEXT_CHARS = 20_000


@dataclass(frozen=True)
class Cause:
    """What a person on call wants to know."""

    verdict: Verdict
    reason: str
    """One word for it: OOMKilled, ImagePullBackOff, Unschedulable, Evicted, DeadlineExceeded, Deleted, ValueError..."""
    finding: str
    remedy: str = ""
    who: str = ""
    """The rank that failed first, or the node where its rank is not known."""
    pod: str = ""
    exit_code: int | None = None
    look: str = ""
    """The command that shows it."""
    traceback: str = ""
    """The user's own traceback, or the last lines of the log where there is none."""
    faults: tuple[Fault, ...] = ()
    users: bool = False
    """Somebody who is not us can put it right."""
    final: bool = False
    """The job was tried as often as it may be, or waited for as long as it is: the same again would end the same."""
    earlier: tuple[str, ...] = ()
    """What was survived before: restarts and suspensions."""


def cause_of(situation: Situation, logs: Mapping[str, str] | None = None, gave_up: str | None = None) -> Cause:
    """The cause as far as it is known; `logs` are by name of pod, the more of the failed ones the better.

    `gave_up` says why nobody waits for it any longer: what it waits for is then what it failed of.
    """
    logs = logs or {}
    cause = replace(_cause(situation, logs, gave_up), earlier=tuple(_earlier(situation)))
    return cause if cause.look or cause.verdict in ("succeeded", "running") else replace(cause, look=_look(situation, cause.pod))


def _cause(situation: Situation, logs: Mapping[str, str], gave_up: str | None) -> Cause:
    if situation.state == "succeeded":
        return Cause("succeeded", "Complete", f"all {situation.nodes} nodes finished")
    if situation.state == "deleted":
        doing = "running" if any(pod.running_since_s for pod in situation.pods.values()) else "waiting"
        return Cause(
            "deleted",
            "Deleted",
            f"the {situation.kind} was deleted while it was {doing}",
            "run it again: it goes on from its last saved state",
        )
    if situation.state == "failed":
        deadline = _deadline(situation)
        if deadline:
            return deadline
        first = first_failure(situation, logs)
        return _of_end(situation, first, logs) if first else _untold(situation)
    if gave_up and gave_up.startswith("ran for"):
        return _too_long(gave_up)
    if situation.blocked is not None and (gave_up or situation.blocked.kind != "creating"):
        return _of_block(situation, gave_up)
    return Cause("running" if situation.state == "running" else "waiting", situation.state.capitalize(), situation.waiting_for or "it runs")


def first_failure(situation: Situation, logs: Mapping[str, str] | None = None, attempt: int | None = None) -> Ended | None:
    """The end that the others followed from, in the last attempt or in a given one; None if no container failed.

    A container that was told to end is not the first, unless the cluster or a person took its pod away. What ends in the same
    second is told apart by what it left: the loss of another rank is an effect, a kill or an own error is a cause.
    """
    ends = [end for pod in situation.pods.values() for end in pod.ended if end.exit_code != 0]
    # one that says that it is not started again has nothing to say of what went wrong before
    ends = [end for end in ends if (_word(end) or {}).get("type") != "NotAgain"] or ends
    if not ends:
        return None
    attempt = max(end.attempt for end in ends) if attempt is None else attempt
    ends = [end for end in ends if end.attempt == attempt]
    taken = {pod.name for pod in situation.pods.values() if pod.deleting and not pod.asked_by_controller}
    causes = [end for end in ends if not end.asked or end.disruption or end.pod in taken]
    return min(causes or ends, key=lambda end: _order(end, (logs or {}).get(end.pod, ""))) if ends else None


def _order(end: Ended, log: str) -> tuple[Any, ...]:
    word = _word(end)
    error = (word or {}).get("message") or (lambda found: found.error if found else "")(first_traceback(log))
    effect = end.reason != "OOMKilled" and not end.disruption and (is_echo(error) or end.exit_code in (_STOPPED, 143))
    return (effect, end.at_s, not end.disruption, end.reason != "OOMKilled", (word or {}).get("time", end.at_s + 1), end.index or 0)


def _word(end: Ended) -> dict[str, Any] | None:
    """What a rank left in the termination message of its container (see trainer.observe.leave_word)."""
    if not end.message.startswith("{"):
        return None
    try:
        word = json.loads(end.message)
    except ValueError:
        return None
    return word if isinstance(word, dict) and {"who", "type", "message"} <= word.keys() else None


def _of_end(situation: Situation, end: Ended, logs: Mapping[str, str]) -> Cause:
    log, word = logs.get(end.pod, ""), _word(end)
    found = first_traceback(log) or first_traceback(end.message)
    who = _who(situation, end.index, word["who"] if word else None, found.rank if found else None)
    cause = Cause("failed", end.reason or "Error", "", who=who, pod=end.pod, exit_code=end.exit_code)
    lines = last_lines(log or ("" if word else end.message))
    if end.disruption:
        return replace(
            cause,
            reason="Evicted" if end.disruption in ("EvictionByEvictionAPI", "Evicted") else end.disruption,
            finding=f"the cluster took its pod away ({end.disruption})" + (f": {end.message}" if end.reason == "Evicted" else ""),
            remedy="run it again: it goes on from its last saved state. If it happens often, raise cluster.max_restarts or its priority",
            look=f"kubectl get events -n {_namespace(situation)} --field-selector involvedObject.name={end.pod}",
        )
    if end.reason == "OOMKilled":
        return replace(
            cause,
            finding=f"was killed for using more memory than its limit{_limit(situation)}",
            remedy="raise cluster.memory_gib_per_node, or lower train.batch; /dev/shm counts as memory too",
            traceback=lines,
            users=True,
            final=True,
        )
    if end.asked:
        return replace(
            cause,
            reason="PodDeleted",
            finding="somebody deleted its pod",
            remedy="run it again: it goes on from its last saved state",
        )
    if word and (word["type"] == "Stopped" or end.exit_code == _STOPPED):
        return replace(cause, reason="Stopped", finding=word["message"], remedy="run it again: it goes on from its last saved state")
    if word:
        faults = tuple(Fault(**fault) for fault in word.get("faults") or ())
        trace = word.get("traceback") or ""
        if found and word["message"] and found.error.endswith(word["message"].splitlines()[-1]):
            trace = found.text  # the word may have room for its end only
        remedy = faults[0].remedy if faults else "see the traceback; the whole log is in the log of this step"
        # what a preflight finds, a store or a network has may be gone in a minute
        final = not (end.preparing or word["type"] in ("StoreError", "LaunchError") or is_echo(word["message"]))
        return replace(cause, reason=word["type"], finding=word["message"], remedy=remedy, traceback=trace, faults=faults, final=final)
    if end.preparing:
        said = last_lines(log or end.message, 5)
        return replace(
            cause,
            reason="Preflight" if end.container == "preflight" else "InitFailed",
            finding=f"init container {end.container} failed: {said or f'exit code {end.exit_code}'}",
            remedy="put right what it names; nothing was trained",
            users=True,
        )
    if found:
        return replace(
            cause,
            reason=found.error.split(":")[0].split(".")[-1],
            finding=found.error,
            remedy="see the traceback; the whole log is in the log of this step",
            traceback=found.text,
            final=not is_echo(found.error),
        )
    signal = _SIGNALS.get(end.exit_code)
    if signal:
        hint = ": most often its machine ran out of memory" if signal == "SIGKILL" else ""
        return replace(
            cause,
            reason=signal,
            finding=f"was killed by {signal}{hint}",
            remedy="look at its machine: memory, GPU errors (dmesg, Xid), then run it again",
            traceback=lines,
        )
    if end.container == "":
        return replace(
            cause,
            finding=f"its pod failed before it ran: {end.reason}: {end.message}",
            remedy="put right what the message names",
            users=True,
        )
    return replace(
        cause,
        finding=f"ended with exit code {end.exit_code} and left no traceback",
        remedy="see the last lines of its log",
        traceback=lines,
    )


def _of_block(situation: Situation, gave_up: str | None) -> Cause:
    blocked = situation.blocked
    assert blocked is not None
    namespace = _namespace(situation)
    pod = blocked.subject if blocked.subject in situation.pods else ""
    index = situation.pods[pod].index if pod else None
    message = " ".join(blocked.message.split())
    reason, remedy, look = blocked.reason or "Starting", "", _look(situation, pod)
    if blocked.kind == "image":
        image = re.search(r'image "([^"]+)"', message)
        reason = "InvalidImageName" if reason == "InvalidImageName" else "ImagePullBackOff"
        message = f"the image {image[1] if image else ''} can't be pulled: {_tail(message)}".replace("  ", " ")
        remedy = "check the name, that it was pushed, and imagePullSecrets for a private registry"
    elif blocked.kind == "unschedulable":
        message = f"no node has room: {message}"
        remedy = "wait for room, or ask for less: cluster.gpus_per_node, cpus_per_node, memory_gib_per_node, node_selector"
        look = "kubectl get nodes -o custom-columns=NAME:.metadata.name,ALLOCATABLE:.status.allocatable"
    elif blocked.kind == "kueue":
        message = f"Kueue holds it in {blocked.subject}: {message}"
        remedy = "wait for quota, ask for less, or name another cluster.queue"
        look = f"kubectl get workloads,localqueues -n {namespace}"
    elif blocked.kind == "suspended":
        remedy = "resume it, or cancel the run"
        where = f"{situation.kind.lower()} {situation.name} -n {namespace}"
        look = f"kubectl patch {where} --type=merge -p " + "'" + '{"spec":{"suspend":false}}' + "'"
    elif blocked.kind == "quota":
        reason, remedy = "QuotaExceeded", "wait until other pods of the namespace end, or ask for less"
        look = f"kubectl describe resourcequota -n {namespace}"
    elif blocked.kind == "config":
        remedy = "create what is missing, or name what exists"
    elif blocked.kind == "mount":
        remedy = "create the Secret, ConfigMap or volume that it names"
    elif blocked.kind == "refused":
        remedy = "put right what the message names"
    else:
        remedy = "look at the pods: a large image, a slow volume or a sick node"
    verdict: Verdict = "failed" if gave_up else "waiting"
    finding = f"{message} ({gave_up})" if gave_up else message
    who = _who(situation, index, None, None) if pod else ""
    return Cause(verdict, reason, finding, remedy, who=who, pod=pod, look=look, users=True, final=bool(gave_up))


def _deadline(situation: Situation) -> Cause | None:
    conditions = (situation.job or {}).get("status", {}).get("conditions") or []
    if not any(c["type"] == "Failed" and c.get("reason") == "DeadlineExceeded" for c in conditions):
        return None
    limit = (situation.job or {}).get("spec", {}).get("activeDeadlineSeconds")
    return _too_long(f"ran for more than {limit} s, its deadline")


def _too_long(finding: str) -> Cause:
    remedy = "raise cluster.deadline_hours, or train less; run again and it goes on from its last saved state"
    return Cause("failed", "DeadlineExceeded", finding, remedy, users=True, final=True)


def _untold(situation: Situation) -> Cause:
    """Failed, and no container says why: what the controllers say of it."""
    for thing in (situation.job, situation.jobset):
        for condition in (thing or {}).get("status", {}).get("conditions") or []:
            if condition["type"] == "Failed" and condition["status"] == "True":
                said = "; ".join(situation.warnings.values())
                finding = f"{condition.get('message', '')}" + (f"; warnings: {said}" if said else "")
                return Cause("failed", condition.get("reason", "Failed"), finding, "see the events of the job and of its pods")
    return Cause("failed", "Failed", "failed, and nothing says why", "see the events of the job and of its pods")


def _earlier(situation: Situation) -> Sequence[str]:
    """A line per attempt that was survived, and per suspension."""
    lines = []
    last = first_failure(situation) if situation.state == "failed" else None
    for attempt in range(min(situation.restarts, last.attempt) if last else situation.restarts):
        end = first_failure(situation, attempt=attempt)
        if end is None:
            lines.append(f"attempt {attempt + 1}: restarted")
            continue
        brief = _of_end(situation, end, {})
        lines.append(f"attempt {attempt + 1}: {brief.who}: {brief.finding}")
    if situation.suspensions:
        lines.append("suspended while it ran" + (f", {situation.suspensions} times" if situation.suspensions > 1 else ""))
    return lines


def _who(situation: Situation, index: int | None, said: str | None, rank: int | None) -> str:
    """The rank by its own word, by the log, or by its node where that has a single one; else the node with its ranks."""
    if said and said.startswith("rank-"):
        return said.replace("-", " ")
    if rank is not None:
        return f"rank {rank}"
    if index is None:
        return said or "a node"
    each = _processes(situation)
    if each == 1:
        return f"rank {index}"
    return f"node {index} (ranks {index * each} to {index * each + each - 1})" if each else f"node {index}"


def _processes(situation: Situation) -> int | None:
    """Ranks of a node, if the job says so."""
    spec = (situation.job or {}).get("spec", {})
    if situation.kind == "TrainJob":
        found = spec.get("trainer", {}).get("numProcPerNode")
    else:
        containers = spec.get("template", {}).get("spec", {}).get("containers") or [{}]
        found = next((e.get("value") for e in containers[0].get("env") or [] if e["name"] == "PET_NPROC_PER_NODE"), None)
    return int(found) if found is not None and str(found).isdigit() else None


def _limit(situation: Situation) -> str:
    spec = (situation.job or {}).get("spec", {})
    if situation.kind == "TrainJob":
        limits = spec.get("trainer", {}).get("resourcesPerNode", {}).get("limits", {})
    else:
        limits = (spec.get("template", {}).get("spec", {}).get("containers") or [{}])[0].get("resources", {}).get("limits", {})
    return f", {limits['memory']}" if "memory" in limits else ""


def _namespace(situation: Situation) -> str:
    return (situation.job or {}).get("metadata", {}).get("namespace", "default")


def _look(situation: Situation, pod: str) -> str:
    what = f"pod {pod}" if pod and not situation.pods[pod].gone else f"{situation.kind.lower()} {situation.name}"
    return f"kubectl describe {what} -n {_namespace(situation)}"


def _tail(message: str, chars: int = 300) -> str:
    return message if len(message) <= chars else "..." + message[-chars:]


def as_error(cause: Cause, situation: Situation) -> CotrainError:
    """The exception that a step ends with; its `markdown` is the page that says it at length, `final` that no other try will help."""
    error = _error(cause, situation)
    error.markdown, error.final = as_markdown(cause, situation), cause.final  # type: ignore[attr-defined]
    return error


def _error(cause: Cause, situation: Situation) -> CotrainError:
    place = f"{situation.kind} {_namespace(situation)}/{situation.name}"
    if cause.verdict == "deleted" or cause.reason == "Stopped":
        return Stopped(f"{place}: {cause.finding}; {cause.remedy}")
    if cause.faults:
        return UserError(cause.faults)
    finding = f"{cause.who} failed first: {cause.finding}" if cause.who and cause.exit_code is not None else cause.finding
    if cause.users:
        return LaunchError.at(place, f"{finding} [{cause.reason}]", f"{cause.remedy}\n    see: {cause.look}")
    trace = f"\n{cause.traceback[-_TEXT_CHARS:]}" if cause.traceback else ""
    return CotrainError(f"{place}: {finding} [{cause.reason}]\n    fix: {cause.remedy}\n    see: {cause.look}{trace}".rstrip())


def as_markdown(cause: Cause, situation: Situation) -> str:
    """The cause as the artifact of a step. Text of logs and messages is quoted, never rendered."""
    title = f"Training {cause.verdict}" + ("" if cause.verdict in ("succeeded", "running") else f": {cause.reason}")
    rows = {
        "job": f"{situation.kind} {_namespace(situation)}/{situation.name}",
        "first to fail" if cause.verdict == "failed" else "of": cause.who,
        "pod": cause.pod + (f" on {situation.pods[cause.pod].node}" if cause.pod and situation.pods[cause.pod].node else ""),
        "exit": "" if cause.exit_code is None else f"{cause.reason}, exit code {cause.exit_code}",
        "restarts": str(situation.restarts),
        "seconds": f"{situation.queue_s:.0f} in queues, {situation.start_s:.0f} to start, {situation.run_s:.0f} running",
    }
    table = ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows.items() if value)]
    parts = [f"# {title}", "\n".join(table), _quote(cause.finding)]
    if cause.remedy:
        parts.append(f"**Remedy**: {cause.remedy}")
    if cause.look:
        parts.append(f"**See it**:\n\n{_quote(cause.look)}")
    if cause.traceback:
        parts.append(f"## From its log\n\n{_quote(cause.traceback[-_TEXT_CHARS:])}")
    if cause.earlier:
        parts.append("## Before that\n\n" + "\n".join(f"- {_cell(line)}" for line in cause.earlier))
    return "\n\n".join(parts) + "\n"


def _quote(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
