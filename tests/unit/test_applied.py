"""`cotrain plan --manifests`: what would be sent to a cluster, and nothing else on standard output."""

from __future__ import annotations

import kubernetes_schemas
import yaml
from click.testing import CliRunner
from command import document, write_csv

from pipelines.cli import main


def planned(folder, *options: str, **environment: str):
    write_csv(folder / "table.csv")
    made = document()
    made["data"]["table"]["uri"] = str(folder / "table.csv")
    (folder / "job.yaml").write_text(yaml.safe_dump(made))
    command = ["plan", str(folder / "job.yaml"), "--root", str(folder / "runs"), "--manifests", *options]
    return CliRunner().invoke(main, command, env={"COTRAIN_LAUNCHER": None, "COTRAIN_IMAGE": None, **environment})


def test_it_prints_a_trainjob_for_every_run_that_a_server_would_take(tmp_path):
    found = planned(tmp_path, "--set", "cluster.launcher=trainjob", COTRAIN_IMAGE="registry/cotrain:1")
    assert found.exit_code == 0, found.output
    things = list(yaml.safe_load_all(found.stdout))
    assert {thing["kind"] for thing in things} == {"TrainJob"}
    roles = [(thing["metadata"]["labels"]["cotrain.io/role"], thing["metadata"]["labels"].get("cotrain.io/task")) for thing in things]
    assert roles[0] == ("joint", None)
    assert len(roles) == len(set(roles)) == 1 + len(document()["tasks"])
    assert [fault for thing in things for fault in kubernetes_schemas.faults(thing)] == []


def test_what_pods_could_not_reach_is_not_for_applying(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = planned(tmp_path, "--set", "cluster.launcher=trainjob", "--root", "runs")
    assert found.exit_code == 0
    assert list(yaml.safe_load_all(found.stdout))
    assert "to be read, not to be applied:\n--root: 'runs' is a folder of this machine" in found.stderr
    assert "not to be applied" not in planned(tmp_path, "--set", "cluster.launcher=trainjob").stderr


def test_the_machine_may_say_who_launches(tmp_path):
    found = planned(tmp_path, COTRAIN_LAUNCHER="job", COTRAIN_IMAGE="registry/cotrain:1")
    assert [thing["kind"] for thing in yaml.safe_load_all(found.stdout)][:2] == ["Service", "Job"]


def test_what_is_trained_on_this_machine_has_no_manifests(tmp_path):
    found = planned(tmp_path)
    assert found.exit_code == 2
    assert "cluster.launcher" in found.output


def test_a_job_without_an_image_is_refused_with_the_remedy(tmp_path):
    found = planned(tmp_path, "--set", "cluster.launcher=job")
    assert found.exit_code == 2
    assert "COTRAIN_IMAGE" in found.output
