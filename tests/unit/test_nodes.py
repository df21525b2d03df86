"""Nodes of a rendered job as processes: their environment, and what follows when one of them ends."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from components.nodes import MARK, Ended, Nodes
from components.rendered import Pods, Policy

RULES = {"final": frozenset({2, 3}), "uncounted": frozenset({143})}


def pods(script: str, nodes: int = 2, restarts: int = 2, each: bool = False, env: tuple[dict, ...] = (), least: int | None = None) -> Pods:
    options = (f"--nnodes={least}:{nodes}",) if least else ()
    return Pods("job", "team", ("sh", "-c", script, *options), env, nodes, 4, Policy(restarts, each, **RULES))


def run(found: Pods, folder: Path, **given: object) -> Ended:
    return Nodes(found, {"FOLDER": str(folder)}, **given).run()


def starts(folder: Path, node: int) -> int:
    return len((folder / f"{node}").read_text().splitlines())


COUNT = 'echo >> "$FOLDER/$JOB_COMPLETION_INDEX"; n=$(wc -l < "$FOLDER/$JOB_COMPLETION_INDEX"); '
TOGETHER = (
    COUNT + 'until [ "$(cat "$FOLDER/0" | wc -l)" -ge $n ] && [ "$(cat "$FOLDER/1" | wc -l)" -ge $n ]; do sleep 0.02; done 2> /dev/null; '
)
"""Both nodes have been started as often: one that ends sooner would end the other before it has counted itself."""


def test_a_node_sees_what_a_cluster_would_inject(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of this machine")
    monkeypatch.setenv("PET_RDZV_BACKEND", "of another run")
    field = lambda path: {"valueFrom": {"fieldRef": {"fieldPath": path}}}  # noqa: E731
    env = (
        {"name": "PLAIN", "value": "on $(PET_MASTER_ADDR), $(NOTHING), $$(PLAIN)"},
        {"name": "PET_NNODES", "value": "99"},
        {"name": "HOME", "value": "/of/the/pod"},
        {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": {"secretKeyRef": {"name": "store", "key": "AWS_SECRET_ACCESS_KEY"}}},
        {"name": "NOWHERE", "valueFrom": {"secretKeyRef": {"name": "store", "key": "NOWHERE", "optional": True}}},
        {"name": "POD", **field("metadata.name")},
        {"name": "WHICH", **field("metadata.annotations['batch.kubernetes.io/job-completion-index']")},
        {"name": "COTRAIN_RESTARTS", **field("metadata.labels['jobset.sigs.k8s.io/restart-attempt']")},
    )
    script = (
        f'{sys.executable} -c \'import json, os; json.dump(dict(os.environ), open(os.environ["FOLDER"] + "/" + os.environ["WHICH"], "w"))\''
    )
    assert run(pods(script, env=env), tmp_path) == Ended(0)
    one = json.loads((tmp_path / "1").read_text())
    expected = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "4", "PET_NODE_RANK": "1", "JOB_COMPLETION_INDEX": "1", "POD": "job-node-0-1",
                "PET_MASTER_ADDR": "127.0.0.1", "PLAIN": "on 127.0.0.1, $(NOTHING), $(PLAIN)", "HOME": os.environ["HOME"],
                "AWS_SECRET_ACCESS_KEY": "of this machine", "COTRAIN_RESTARTS": "0"}  # fmt: skip
    assert {name: one.get(name) for name in expected} == expected
    assert "NOWHERE" not in one
    assert "PET_RDZV_BACKEND" not in one
    assert one["PET_MASTER_PORT"] == json.loads((tmp_path / "0").read_text())["PET_MASTER_PORT"]


def test_a_failure_starts_all_nodes_again_as_often_as_the_policy_says(tmp_path):
    again = []
    ended = run(pods(TOGETHER + '[ "$JOB_COMPLETION_INDEX" = 0 ] || exit 1; sleep 60'), tmp_path, again=lambda: again.append(1))
    assert ended == Ended(1, restarts=2)
    assert (starts(tmp_path, 0), starts(tmp_path, 1), len(again)) == (3, 3, 2)


def test_a_run_that_recovers_has_not_failed(tmp_path):
    assert run(pods(TOGETHER + "[ $n -ge 2 ]"), tmp_path).code == 0


def test_what_the_user_has_to_put_right_is_not_tried_again(tmp_path):
    assert run(pods(TOGETHER + "exit 2"), tmp_path) == Ended(2)
    assert (starts(tmp_path, 0), starts(tmp_path, 1)) == (1, 1)


def test_a_node_of_an_indexed_job_is_started_again_alone(tmp_path):
    ended = run(pods(COUNT + '[ "$JOB_COMPLETION_INDEX" = 0 ] || [ $n -ge 3 ]', each=True), tmp_path)
    assert ended == Ended(0, replaced=2)
    assert (starts(tmp_path, 0), starts(tmp_path, 1)) == (1, 3)
    assert run(pods("exit 7", each=True, restarts=1), tmp_path).code == 7


def test_preemption_counts_as_no_failure(tmp_path):
    """Exit code 143: asked to stop, the state is saved."""
    ended = run(pods(COUNT + "[ $n -ge 4 ] || exit 143", restarts=0), tmp_path)
    assert (ended.code, ended.restarts, ended.replaced) == (0, 0, 6)


class After(threading.Thread):
    """Does something once every node has started."""

    def __init__(self, folder: Path, nodes: int, act) -> None:
        super().__init__(daemon=True)
        self.there = [folder / str(n) for n in range(nodes)]
        self.act = act
        self.start()

    def run(self) -> None:
        while not all(file.exists() for file in self.there):
            time.sleep(0.02)
        self.act()


def test_a_machine_that_goes_down_is_replaced(tmp_path):
    nodes = Nodes(pods(COUNT + '[ "$JOB_COMPLETION_INDEX$n" != 11 ] || sleep 60', restarts=0), {"FOLDER": str(tmp_path)})
    After(tmp_path, 2, lambda: nodes.kill(1))
    assert nodes.run() == Ended(0, replaced=1)


def test_the_others_go_on_without_a_machine_that_is_lost_for_good(tmp_path):
    nodes = Nodes(pods(COUNT + '[ "$JOB_COMPLETION_INDEX" != 2 ] || sleep 60', nodes=3, least=2), {"FOLDER": str(tmp_path)})
    After(tmp_path, 3, lambda: nodes.kill(2, for_good=True))
    assert nodes.run() == Ended(0, lost=(2,))


def test_too_few_machines_end_the_job(tmp_path):
    nodes = Nodes(pods(COUNT + "sleep 60", nodes=2, least=2), {"FOLDER": str(tmp_path)})
    After(tmp_path, 2, lambda: nodes.kill(1, for_good=True))
    assert nodes.run() == Ended(-9, lost=(1,))


def test_sigterm_is_passed_on_to_every_node_and_their_end_is_waited_for(tmp_path):
    script = "trap 'sleep 0.3; echo >> \"$FOLDER/done\"; exit 143' TERM; " + COUNT + "while :; do sleep 0.05; done"
    before = signal.getsignal(signal.SIGTERM)
    After(tmp_path, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run(pods(script), tmp_path) == Ended(143, stopped=True)
    assert len((tmp_path / "done").read_text().splitlines()) == 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_nothing_of_a_node_outlives_it(tmp_path):
    """Neither what has a session of its own nor what ignores SIGTERM, as ranks under torchrun."""
    script = 'trap "" TERM; setsid sleep 100 & ' + COUNT + '[ "$JOB_COMPLETION_INDEX" = 0 ] && exit 3; sleep 100'
    found = Nodes(pods(script, nodes=1), {"FOLDER": str(tmp_path)})
    assert found.run().code == 3
    mark = f"{found._name}-0"
    assert not [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get(MARK) == mark]


def test_a_command_that_is_not_there_is_said(tmp_path):
    from trainer.errors import LaunchError

    with pytest.raises(LaunchError, match="'no-such-thing' can't be started"):
        Nodes(Pods("job", "team", ("no-such-thing",), (), 1, 1, Policy(0, False, **RULES))).run()
