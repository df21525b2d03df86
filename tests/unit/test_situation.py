"""What recorded clusters said, and what a person makes of it: state, restarts, seconds in queues and running, verdict and cause."""

from __future__ import annotations

import pytest
from recorded_streams import NAMES, VERDICTS, Recording, recording

from components.causes import as_error, as_markdown, cause_of
from components.patience import Patience, gave_up
from components.pods import seconds
from components.situation import Situation, fold, tick
from trainer.errors import CotrainError, LaunchError, Stopped

WATCHED = [name for name in NAMES if not name.startswith("refused")]


def told(name: str, until_s: float | None = None) -> tuple[Situation, Recording]:
    """The situation at the end of a recording, or some seconds after its start."""
    found = recording(name)
    situation = Situation("joint", "TrainJob")
    for t_s, event in found.events:
        if until_s is not None and t_s > until_s:
            break
        situation = tick(fold(situation, event, found.started_s + t_s), found.started_s + t_s)
    return situation, found


def test_no_recording_is_left_out():
    assert set(VERDICTS) == set(WATCHED)


@pytest.mark.parametrize("name", WATCHED)
def test_the_verdict_is_what_a_person_would_say(name):
    state, verdict, reason, who, said, restarts = VERDICTS[name]
    situation, found = told(name)
    cause = cause_of(situation, found.logs)
    assert (situation.state, cause.verdict, cause.reason, cause.who, situation.restarts) == (state, verdict, reason, who, restarts)
    assert said in cause.finding
    page = as_markdown(cause, situation)
    assert reason in page or verdict == "succeeded"
    assert cause.remedy in page and cause.traceback in page


AS_JOB = ["complete", "exception-rank1", "oom-rank1", "image-pull", "unschedulable", "suspend-resume", "kueue-queued"]
"""Recordings in which one Job lives from start to end."""


@pytest.mark.parametrize("name", AS_JOB)
def test_a_plain_job_is_understood_without_a_trainjob(name):
    """The Job within each recording says the same alone, as a cluster without the Trainer would."""
    found = recording(name)
    situation = Situation("joint-node-0", "Job")
    for t_s, event in found.events:
        if event["object"]["kind"] in ("Job", "Pod", "Event"):
            situation = tick(fold(situation, event, found.started_s + t_s), found.started_s + t_s)
    state, verdict, reason, who, said, restarts = VERDICTS[name]
    cause = cause_of(situation, found.logs)
    assert (situation.state, cause.verdict, cause.reason, cause.who, situation.restarts) == (state, verdict, reason, who, restarts)
    assert said.partition(",")[0] in cause.finding
    if name == "kueue-queued":
        assert situation.queue_s == pytest.approx(11.7, abs=0.5) and situation.run_s == pytest.approx(7, abs=0.5)


EARLIER = {
    "exception-restarts": ["attempt 1: rank 1: ended with exit code 1", "attempt 2: rank 1: ended with exit code 1"],
    "evicted": ["attempt 1: rank 0: the cluster took its pod away (EvictionByEvictionAPI)"],
    "pod-deleted": ["attempt 1: rank 1: somebody deleted its pod"],
    "suspend-running": ["suspended while it ran"],
}


@pytest.mark.parametrize("name", WATCHED)
def test_what_was_survived_is_told_too(name):
    situation, found = told(name)
    earlier = cause_of(situation, found.logs).earlier
    expected = EARLIER.get(name, [])
    assert len(earlier) == len(expected)
    assert all(line.startswith(start) for line, start in zip(earlier, expected, strict=True))


SECONDS = {
    # name: in queues, running, as the times in the recording add up
    "complete": (0, 7),
    "suspend-resume": (5.2, 7),
    "suspend-running": (15.2, 7.7 + 2.1 + 42.3),
    "kueue-queued": (11.8, 7),
    "unschedulable": (8.5, 0),
    "image-pull": (0, 0),
    "deadline": (0, 6),
}


@pytest.mark.parametrize("name", SECONDS)
def test_time_in_a_queue_is_not_time_running(name):
    situation, _ = told(name)
    assert (situation.queue_s, situation.run_s) == pytest.approx(SECONDS[name], abs=0.35)
    assert situation.queue_s + situation.start_s + situation.run_s == pytest.approx(
        situation.since_s - seconds(situation.job["metadata"]["creationTimestamp"]), abs=0.01
    )


WAITS = {
    ("kueue-queued", 5): ("queued", "queued by Kueue in lq: couldn't assign flavors to pod set node: insufficient quota for cpu"),
    ("kueue-queued", 14): ("starting", "0 of 2 pods run"),
    ("kueue-queued", 16): ("running", ""),
    ("suspend-resume", 4): ("queued", "suspended: somebody has to resume it"),
    ("suspend-running", 8): ("running", ""),
    ("suspend-running", 15): ("queued", "suspended: somebody has to resume it"),
    ("unschedulable", 9): ("queued", "no room for joint-node-0-0-4lskl: 0/2 nodes are available: 2 Insufficient nvidia.com/gpu."),
    ("image-pull", 13): ("starting", "joint-node-0-1-v9txh: ErrImagePull: failed to pull and unpack image"),
    ("evicted", 12): ("restarting", "1 of 2 pods run"),
    ("exception-restarts", 29.9): ("restarting", "0 of 2 pods run"),
}


@pytest.mark.parametrize(("name", "at_s"), WAITS)
def test_what_it_waits_for_is_said(name, at_s):
    state, words = WAITS[name, at_s]
    situation, _ = told(name, at_s)
    assert situation.state == state
    assert situation.waiting_for.startswith(words) and bool(situation.waiting_for) == bool(words)


def test_whoever_comes_late_counts_the_same_seconds():
    """A launcher that adopts a job sees only how things stand, and still doesn't count its time in the queue."""
    whole, found = told("kueue-queued", 18)
    latest = {event["object"]["metadata"]["uid"]: event for t_s, event in found.events if t_s <= 18}
    late = Situation("joint", "TrainJob")
    for event in latest.values():
        late = fold(late, {**event, "type": "ADDED"}, found.started_s + 18)
    late = tick(late, found.started_s + 18)
    assert late.state == "running"
    assert late.run_s == pytest.approx(whole.run_s, abs=2.5)  # the API's times are whole seconds, and watches lag
    assert late.queue_s == pytest.approx(whole.queue_s + whole.start_s, abs=2.5)


@pytest.mark.parametrize(
    ("name", "patience", "expected"),
    [
        ("image-pull", Patience(image_s=10), "no better after 10 s"),
        ("image-pull", Patience(image_s=60), None),
        ("unschedulable", Patience(), None),
        ("unschedulable", Patience(queue_s=5), "waited in a queue for more than 5 s"),
        ("kueue-queued", Patience(run_s=8), None),
        ("suspend-running", Patience(run_s=55), None),
        ("complete", Patience(run_s=5), "ran for more than 5 s"),
    ],
)
def test_patience_is_for_what_can_get_better(name, patience, expected):
    situation, found = told(name)
    assert gave_up(situation, found.started_s + found.events[-1][0], patience) == expected


@pytest.mark.parametrize(
    ("name", "kind", "exit_code"),
    [("oom-rank1", LaunchError, 2), ("exception-rank1", CotrainError, 1), ("deadline", LaunchError, 2), ("trainjob-deleted", Stopped, 130)],
)
def test_an_exception_says_place_finding_and_remedy(name, kind, exit_code):
    situation, found = told(name)
    cause = cause_of(situation, found.logs)
    error = as_error(cause, situation)
    assert type(error) is kind and error.exit_code == exit_code
    assert f"TrainJob rec-{name}/joint" in str(error) and cause.finding in str(error) and cause.remedy in str(error)
    assert error.markdown == as_markdown(cause, situation)


def test_the_users_own_traceback_is_in_the_exception():
    situation, found = told("exception-rank1")
    text = str(as_error(cause_of(situation, found.logs), situation))
    assert 'Traceback (most recent call last):\n  File "<string>", line 3, in <module>\nValueError: task digit' in text
    assert "kubectl describe pod joint-node-0-1-gsfwm -n rec-exception-rank1" in text


@pytest.mark.parametrize("name", WATCHED)
def test_a_final_state_stays_whatever_is_told_afterwards(name):
    situation, found = told(name)
    if situation.state in ("succeeded", "failed", "deleted"):
        for t_s, event in found.events:
            assert tick(fold(situation, event, found.started_s + t_s), found.started_s + t_s).state == situation.state
