"""Causes that no recording has: the word of a rank, preflight, plain Jobs, nodes that evict, ranks that fall together."""

from __future__ import annotations

import json

import pytest

from components.causes import as_error, as_markdown, cause_of
from components.situation import Situation, fold, tick
from components.tracebacks import first_traceback
from trainer.errors import CotrainError, LaunchError, Stopped, UserError

START = "2026-11-21T10:00:00Z"


def job(kind="TrainJob", nodes=2, each=1, failed=True, **spec):
    if kind == "TrainJob":
        spec = {"trainer": {"numNodes": nodes, "numProcPerNode": each}, **spec}
    else:
        container = {"name": "node", "env": [{"name": "PET_NPROC_PER_NODE", "value": str(each)}]}
        spec = {"completions": nodes, "template": {"spec": {"containers": [container]}}, **spec}
    told = [{"type": "Failed", "status": "True", "reason": "FailedJobs", "message": "one or more jobs failed"}] if failed else []
    return {
        "kind": kind,
        "metadata": {"name": "j", "namespace": "ns", "uid": "u", "creationTimestamp": START},
        "spec": spec,
        "status": {"conditions": told},
    }


def pod(index=0, exit_code=1, at=10, reason="Error", message="", name=None, init=False, phase="Failed", conditions=(), **status):
    ended = {
        "exitCode": exit_code,
        "reason": reason,
        "message": message,
        "startedAt": START,
        "finishedAt": f"2026-11-21T10:{at // 60:02d}:{at % 60:02d}Z",
    }
    group, container = ("initContainerStatuses", "preflight") if init else ("containerStatuses", "node")
    containers = {group: [{"name": container, "restartCount": 0, "state": {"terminated": ended}}]} if exit_code is not None else {}
    return {
        "kind": "Pod",
        "metadata": {
            "name": name or f"j-{index}",
            "uid": name or f"p{index}",
            "labels": {"batch.kubernetes.io/job-completion-index": str(index)},
        },
        "status": {"phase": phase, "conditions": list(conditions), **containers, **status},
    }


def situation(*things, kind="TrainJob"):
    found = Situation("j", kind)
    for n, thing in enumerate(things):
        found = fold(found, {"type": "ADDED", "object": thing}, 1_795_000_000.0 + n)
    return tick(found, 1_795_000_100.0)


def word(who="rank-1", kind="ValueError", text="no", **more):
    said = {"time": 5.0, "who": who, "type": kind, "message": text, "faults": [], "exit_code": 1, "traceback": f"Traceback\n{kind}: {text}"}
    return json.dumps(said | more)


def test_the_word_that_a_rank_left_says_which_rank_of_a_node_it_was():
    cause = cause_of(situation(job(each=8), pod(0, message=word("rank-5", "KeyError", "'digit'"))))
    assert (cause.who, cause.reason, cause.finding) == ("rank 5", "KeyError", "'digit'")
    assert cause.traceback == "Traceback\nKeyError: 'digit'"


def test_a_word_that_was_cut_is_made_whole_from_the_log():
    whole = "Traceback (most recent call last):\n  File \"deep.py\", line 1, in f\nKeyError: 'digit'"
    log = "\n".join(f"[rank5]: {line}" for line in whole.splitlines())
    cause = cause_of(
        situation(job(each=8), pod(0, message=word("rank-5", "KeyError", "'digit'", traceback="...KeyError: 'digit'"))), {"j-0": log}
    )
    assert (cause.traceback, cause.who) == (whole, "rank 5")


def test_a_fault_of_the_user_stays_one():
    fault = {"place": "data.x", "finding": "has no rows", "remedy": "add some"}
    found = situation(job(), pod(1, exit_code=2, message=word(kind="DataError", faults=[fault], traceback="", exit_code=2)))
    error = as_error(cause_of(found), found)
    assert isinstance(error, UserError) and [vars(f) for f in error.faults] == [fault]


@pytest.mark.parametrize(
    ("thing", "logs", "final"),
    [
        (pod(0, message=word("rank-0", "KeyError", "'digit'")), {}, True),
        (pod(0, exit_code=2, message=word("rank-0", "DataError", "no rows", exit_code=2)), {}, True),
        (pod(0, exit_code=137, reason="OOMKilled"), {}, True),
        (pod(0), {"j-0": "Traceback (most recent call last):\n  File x\nValueError: no column x"}, True),
        (pod(0, exit_code=2, message=word("rank-0", "StoreError", "can't be reached", exit_code=2)), {}, False),
        (pod(0, init=True, exit_code=2, message=word("preflight of node 0", "LaunchError", "its clock is 60 s ahead")), {}, False),
        (pod(0, message=word("rank-0", "RuntimeError", "Connection closed by peer [10.0.0.1]:4212")), {}, False),
        (pod(0, conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]), {}, False),
        (pod(0, exit_code=137), {}, False),
        (pod(0), {}, False),
    ],
)
def test_what_the_user_has_to_put_right_is_final_and_what_machines_do_is_not(thing, logs, final):
    found = situation(job(), thing)
    assert as_error(cause_of(found, logs), found).final is final


def test_ranks_that_stopped_have_not_failed():
    found = situation(job(), pod(0, exit_code=143, message=word("rank-0", "Stopped", "stopped at step 7")))
    assert isinstance(as_error(cause_of(found), found), Stopped)


def test_a_preflight_that_fails_says_what_it_found():
    found = situation(job(), pod(1, init=True, message="/dev/shm has 64 MiB, 2048 MiB are asked for"))
    cause = cause_of(found)
    assert (cause.reason, cause.who) == ("Preflight", "rank 1")
    assert "/dev/shm has 64 MiB" in cause.finding and isinstance(as_error(cause, found), LaunchError)


LOST = "Traceback (most recent call last):\n  File x\nRuntimeError: [..gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]:4212"
OWN = "Traceback (most recent call last):\n  File x\nZeroDivisionError: division by zero"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_ranks_that_end_in_one_second_the_one_that_lost_another_is_not_the_cause(order):
    pods = [pod(0, at=10), pod(1, at=10)]
    cause = cause_of(situation(job(), *(pods[n] for n in order)), {"j-0": LOST, "j-1": OWN})
    assert (cause.who, cause.reason) == ("rank 1", "ZeroDivisionError")


def test_a_kill_comes_before_what_followed_from_it():
    pods = [pod(0, at=10), pod(1, at=11, exit_code=137, reason="OOMKilled")]
    assert cause_of(situation(job(), *pods), {"j-0": LOST}).reason == "OOMKilled"


def test_a_rank_that_only_lost_another_is_told_when_nothing_else_is_known():
    assert "Connection closed by peer" in cause_of(situation(job(), pod(0)), {"j-0": LOST}).finding


@pytest.mark.parametrize(("code", "name"), [(139, "SIGSEGV"), (137, "SIGKILL"), (134, "SIGABRT")])
def test_a_signal_is_called_by_its_name(code, name):
    cause = cause_of(situation(job(), pod(1, exit_code=code)), {"j-1": "last words"})
    assert cause.reason == name and cause.traceback == "last words"


def test_no_traceback_leaves_the_last_lines():
    log = "\n".join(f"line {n}" for n in range(100))
    assert cause_of(situation(job(), pod(0)), {"j-0": log}).traceback == "\n".join(f"line {n}" for n in range(80, 100))


def test_a_pod_that_is_not_started_again_leaves_the_cause_to_the_one_before():
    """Where all of a container is killed at once, the node can't say that it was not to be started again; the next one says it."""
    killed = pod(1, exit_code=137, at=10, reason="OOMKilled", name="j-1-a")
    refused = pod(0, exit_code=3, at=40, name="j-0-b", message=word("node 0", "NotAgain", "not started for the 1. time again"))
    refused["metadata"]["labels"]["jobset.sigs.k8s.io/restart-attempt"] = "1"
    cause = cause_of(situation(job(), killed, refused))
    assert (cause.reason, cause.who, cause.earlier) == ("OOMKilled", "rank 1", ())


def test_a_node_that_evicts_for_want_of_memory_is_named():
    gone = pod(0, exit_code=None, reason="Evicted", message="")
    gone["status"] |= {"reason": "Evicted", "message": "The node was low on resource: memory."}
    cause = cause_of(situation(job(), gone))
    assert cause.reason == "Evicted" and "low on resource: memory" in cause.finding


PREEMPTED = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "lastTransitionTime": "2026-11-21T10:00:05Z"}


def test_a_preemption_comes_before_the_ranks_that_lost_its_pod():
    preempted = pod(0, exit_code=137, conditions=[PREEMPTED])
    assert cause_of(situation(job(), preempted, pod(1, at=9))).reason == "PreemptionByScheduler"


def test_a_plain_job_counts_its_restarts_by_its_pods():
    found = situation(job("Job"), pod(1, name="a"), pod(0, name="b", at=5), pod(1, name="c", at=30), kind="Job")
    cause = cause_of(found, {"c": OWN})
    assert (found.restarts, cause.pod, cause.reason) == (1, "c", "ZeroDivisionError")
    assert cause.look == "kubectl describe pod c -n ns" and "Job ns/j" in str(as_error(cause, found))


def waiting(reason, message):
    return pod(
        0,
        exit_code=None,
        phase="Pending",
        containerStatuses=[{"name": "node", "state": {"waiting": {"reason": reason, "message": message}}}],
    )


def test_a_missing_secret_is_named():
    found = situation(job(failed=False), waiting("CreateContainerConfigError", 'secret "s3" not found'))
    cause = cause_of(found, gave_up="no better after 120 s")
    assert cause.verdict == "failed" and cause.reason == "CreateContainerConfigError"
    error = as_error(cause, found)
    assert 'secret "s3" not found' in str(error) and error.final
    assert found.waiting_for == 'j-0: CreateContainerConfigError: secret "s3" not found'


def event(about, name, reason, message):
    return {
        "kind": "Event",
        "type": "Warning",
        "metadata": {"name": "e", "uid": "e"},
        "involvedObject": {"kind": about, "name": name},
        "reason": reason,
        "message": message,
        "lastTimestamp": "2026-11-21T10:00:05Z",
    }


@pytest.mark.parametrize(
    ("message", "state", "reason"),
    [
        ('pods "j-node-0-0-x" is forbidden: exceeded quota: q, requested: cpu=8, used: cpu=4, limited: cpu=8', "queued", "QuotaExceeded"),
        ('pods "j-node-0-0-x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true', "starting", "FailedCreate"),
    ],
)
def test_pods_that_may_not_be_made_are_told_by_the_controllers_words(message, state, reason):
    found = situation(job(failed=False), event("Job", "j-node-0", "FailedCreate", message))
    cause = cause_of(found)
    assert (found.state, cause.reason) == (state, reason) and "forbidden" in cause.finding


def test_warnings_of_an_earlier_job_of_that_name_are_not_its_own():
    old = event("Job", "j-node-0", "FailedCreate", "exceeded quota") | {"lastTimestamp": "2026-11-21T09:00:00Z"}
    assert situation(job(failed=False), old).warnings == {}


def test_a_volume_that_can_not_be_mounted_is_named():
    found = situation(job(failed=False), waiting("ContainerCreating", ""), event("Pod", "j-0", "FailedMount", 'configmap "ca" not found'))
    assert 'configmap "ca" not found' in cause_of(found).finding


def test_markdown_can_not_be_broken_by_what_a_log_says():
    log = "Traceback (most recent call last):\n  ```\n  # not a title <script>\nValueError: | a | ``` b"
    page = as_markdown(cause_of(situation(job(), pod(0)), {"j-0": log}), situation(job(), pod(0)))
    assert "````\nTraceback" in page
    outside = [part for n, part in enumerate(page.split("````")) if n % 2 == 0]
    assert not any("<script>" in part or "not a title" in part for part in outside)


RANKS = """[rank1]: Traceback (most recent call last):
[rank0]: Traceback (most recent call last):
[rank1]:   File "a.py", line 1, in f
[rank0]:   File "b.py", line 2, in g
[rank1]: ValueError: mine
[rank0]: RuntimeError: Connection closed by peer
Traceback (most recent call last):
  File "torch/distributed/run.py", line 9, in main
torch.distributed.elastic.multiprocessing.errors.ChildFailedError: train FAILED
"""
CHAINED = """Traceback (most recent call last):
  File "a.py", line 1, in f
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 3, in f
ValueError: no column x
more output
"""


def test_mixed_lines_of_ranks_are_told_apart_and_the_launchers_own_is_passed_over():
    found = first_traceback(RANKS)
    assert (found.rank, found.error) == (1, "ValueError: mine")
    assert found.text.splitlines()[0] == "Traceback (most recent call last):" and "g" not in found.text.splitlines()[1].split()


def test_a_chained_traceback_is_one():
    found = first_traceback(CHAINED)
    assert found.error == "ValueError: no column x" and found.text == CHAINED.removesuffix("\nmore output\n")


def test_exceptions_are_of_our_tree():
    for thing in (job(), pod(0)):
        assert isinstance(as_error(cause_of(situation(job(), thing)), situation(job(), thing)), CotrainError)
