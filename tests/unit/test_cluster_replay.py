"""Recorded clusters, replayed over HTTP to the real client: what launching a training run comes to."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cluster_jobs import connect, furnish, player, request, target
from kube_server import serving
from recorded_streams import VERDICTS, recording

from components import follow, there
from components.launch import Launched
from components.patience import Patience
from trainer.errors import CotrainError, LaunchError

SOON = {"image-pull": Patience(image_s=1), "unschedulable": Patience(queue_s=0.5)}
"""What would be waited for much longer."""


@pytest.fixture
def kube(monkeypatch):
    monkeypatch.setattr(follow, "_TICK_S", 0.2)
    monkeypatch.setattr(there, "_PARTING_S", 0.2)
    with serving() as server:
        furnish(server)
        yield server


def launch(kube, name, tmp_path, monkeypatch, told=None):
    asked = request(queue="lq") if name == "kueue-queued" else request()
    kube.controller = player(kube, name, tmp_path / "root", asked["key"])
    cluster = connect(kube, tmp_path, monkeypatch)
    return there.train(cluster, str(tmp_path / "root"), asked, target(tmp_path / "root"), SOON.get(name), told)


@pytest.mark.parametrize("name", VERDICTS)
def test_a_launch_ends_as_a_person_would_say(name, kube, tmp_path, monkeypatch, capsys):
    state, _, reason, who, said, restarts = VERDICTS[name]
    if state == "succeeded":
        result = launch(kube, name, tmp_path, monkeypatch)
        assert result.json("result.json") == {} and not result.reused
    else:
        with pytest.raises(CotrainError) as caught:
            launch(kube, name, tmp_path, monkeypatch)
        text = str(caught.value)
        assert said in text and "TrainJob ns/digits-joint-" in text
        assert f"{who} failed first" in text or not who or state != "failed"
        assert f"[{reason}]" in text or reason == "Deleted"
        assert f"# Training {'deleted' if state == 'deleted' else 'failed'}: {reason}" in caught.value.markdown
    told = capsys.readouterr().out
    assert f'"restarts": {restarts}, "queue_seconds"' in told
    assert len(kube.created) == 1
    # what never ends by itself is taken away; what has ended stays for whoever looks for its logs
    assert bool(kube.deleted) == (name in SOON)


@pytest.mark.parametrize("name", ["exception-rank1", "evicted", "suspend-running"])
def test_watches_that_break_all_the_time_change_nothing(name, kube, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("components.watching.PAUSE_S", 0.01)
    kube.cut_watches_after = 9
    kube.fail("GET", r"/pods\?watch", 503, times=2)
    kube.fail("GET", r"/trainjobs", 429, times=1, Retry_After="0")
    kube.fail("GET", r"/trainjobs\?watch", 0, times=2)
    state, _, _, who, said, restarts = VERDICTS[name]
    if state == "succeeded":
        assert launch(kube, name, tmp_path, monkeypatch)
    else:
        with pytest.raises(CotrainError, match=f"{who} failed first: {said}"):
            launch(kube, name, tmp_path, monkeypatch)
    assert f'"restarts": {restarts}, "queue_seconds"' in capsys.readouterr().out


def test_the_log_says_what_is_waited_for_and_what_rank_0_says(kube, tmp_path, monkeypatch, capsys):
    launch(kube, "kueue-queued", tmp_path, monkeypatch)
    told = capsys.readouterr().out
    assert told.count("step 0 rank 0\n") == told.count("step 4 rank 0\n") == 1
    assert "rank 1" not in told


def test_a_job_that_went_well_is_told_with_what_it_survived_and_what_it_cost(kube, tmp_path, monkeypatch):
    jobs = []
    result = launch(kube, "kueue-queued", tmp_path, monkeypatch, jobs.append)
    (result.folder / "result.json").write_text(json.dumps({"seconds": {"total": 1800.0}, "ranks": 16, "device": "cuda"}))
    done = Launched(result, jobs[0])
    assert done.page.startswith("# Training succeeded\n")
    assert "in queues" in done.page
    assert done.work.keys() == {"hours", "GPU hours", "restarts", "hours in queues"}
    assert (done.work["hours"], done.work["GPU hours"], done.work["restarts"]) == (0.5, 8.0, 0.0)
    assert done.work["hours in queues"] > 0
    assert Launched(replace(result, reused=True)).page == "It was trained before: nothing was launched.\n"


def test_the_logs_of_all_ranks_are_there_for_the_asking(kube, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COTRAIN_LOG_RANKS", "all")
    launch(kube, "complete", tmp_path, monkeypatch)
    told = capsys.readouterr().out
    assert told.count("step 4 rank 0\n") == 1 and told.count("[node 1] step 4 rank 1\n") == 1


REFUSED = {
    "refused-no-runtime": ("runtime 'nope' not found", "kubectl get trainingruntimes -n ns"),
    "refused-reserved-env": ("must not have reserved envs, invalid envs configured: [PET_NNODES]", "COTRAIN_POD"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_admission_refuses_is_the_users_fault_with_its_words(name, kube, tmp_path, monkeypatch):
    message = recording(name).refusal.partition('"STDIN": ')[2]
    kube.refuse = lambda resource, thing: (403, "Forbidden", message)
    with pytest.raises(LaunchError) as caught:
        launch(kube, name, tmp_path, monkeypatch)
    finding, remedy = REFUSED[name]
    assert finding in caught.value.faults[0].finding and remedy in caught.value.faults[0].remedy
    assert "webhook" not in str(caught.value)
