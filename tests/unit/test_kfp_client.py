"""The client of Kubeflow Pipelines, against a server over HTTP: what it asks, and what its user is told when that goes wrong."""

from __future__ import annotations

import datetime
import ipaddress
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kfp_server import KfpServer, serving

from pipelines.compiled import compile_pipeline, version_of
from pipelines.kfp_client import Access, Kfp, fits
from trainer.errors import CotrainError, LaunchError, UserError

SPEC = {"spec": "{}", "root": "s3://lake/cotrain"}


@pytest.fixture
def server() -> Iterator[KfpServer]:
    with serving() as state:
        yield state


@pytest.fixture(scope="module")
def text() -> str:
    return compile_pipeline()


def started(kfp: Kfp, text: str, name: str = "one", **parameters: Any) -> str:
    pipeline, version, _ = kfp.version(text, version_of(text))
    return kfp.start(kfp.experiment("cotrain"), name, pipeline, version, SPEC | parameters, None)


def test_a_pipeline_is_uploaded_once_per_version(server, text):
    kfp = Kfp(Access(server.url))
    first, again, other = kfp.version(text, "a"), kfp.version(text, "a"), kfp.version(text, "b")
    assert [uploaded for *_, uploaded in (first, again, other)] == [True, False, True]
    assert first[:2] == again[:2]
    assert first[0] == other[0]
    assert len(server.pipelines) == 1
    assert len(server.versions) == 2


def test_the_server_gets_the_pipeline_with_its_drop_downs_and_what_only_kubernetes_knows(server, text):
    kfp = Kfp(Access(server.url))
    _, version, _ = kfp.version(text, "a")
    content = server.versions[version]["pipeline_spec"]
    assert "literals" in content["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]["cluster_launcher"]
    assert "kubernetes" in content["platform_spec"]["platforms"]


def test_a_version_is_named_by_what_it_says(text):
    assert version_of(text) == version_of("# a comment\n" + text)
    assert version_of(text) != version_of(text.replace("maxRetryCount: 3", "maxRetryCount: 4"))


def test_a_run_is_found_by_its_id_and_by_its_name(server, text):
    kfp = Kfp(Access(server.url))
    runs = [started(kfp, text, name) for name in ("one", "two", "one", "one")]
    assert kfp.run(runs[0]).display_name == "one"
    assert [run.run_id for run in kfp.named("one", kfp.experiment("cotrain"))] == [runs[3], runs[2], runs[0]]
    assert len(server.experiments) == 1


def test_a_parameter_outside_its_drop_down_is_refused_by_the_server_and_told(server, text):
    with pytest.raises(UserError, match="cluster_launcher value slurm is not one of the allowed literals"):
        started(Kfp(Access(server.url)), text, cluster_launcher="slurm")


def test_waiting_ends_with_the_run_also_when_it_was_cancelled(server, text):
    kfp = Kfp(Access(server.url))
    for state in ("SUCCEEDED", "FAILED", "CANCELED"):
        run = started(kfp, text)
        timer = threading.Timer(0.1, server.finish, (run, state))
        timer.start()
        assert kfp.wait(run, 60, lambda now: None, poll_s=0.02).state == state
        timer.join()


def test_waiting_survives_a_server_that_is_away_for_a_while(server, text):
    kfp = Kfp(Access(server.url))
    run = started(kfp, text)
    server.away, answers = 503, []

    asked = len(server.requests)

    def back() -> None:
        while len(server.requests) < asked + 8:
            time.sleep(0.01)
        server.away = None
        server.finish(run)

    other = threading.Thread(target=back)
    other.start()
    assert kfp.wait(run, 60, answers.append, poll_s=0.02).state == "SUCCEEDED"
    other.join()
    assert len(server.requests) > asked + len(answers) + 5


def test_waiting_gives_up_in_time(server, text):
    kfp = Kfp(Access(server.url))
    run = started(kfp, text)
    with pytest.raises(LaunchError, match=f"has not ended after 0.05 s; it goes on\n    fix: wait for it: cotrain status {run}"):
        kfp.wait(run, 0.05, lambda now: None, poll_s=0.02)
    server.away = 503
    with pytest.raises(LaunchError, match="HTTP 503"):
        kfp.wait(run, 20, lambda now: None, poll_s=0.02, patience_s=0.1)


def test_a_run_is_terminated_once(server, text):
    kfp = Kfp(Access(server.url))
    run = started(kfp, text)
    kfp.terminate(run)
    assert kfp.run(run).state == "CANCELING"
    server.finish(run, "CANCELED")
    with pytest.raises(UserError, match="Only unfinished runs can be terminated"):
        kfp.terminate(run)


def test_schedules_are_made_listed_switched_and_deleted(server, text):
    kfp = Kfp(Access(server.url))
    pipeline, version, _ = kfp.version(text, "a")
    made = [
        kfp.schedule(
            kfp.experiment("cotrain"), f"nightly-{n}", pipeline, version, params=SPEC, cron_expression="0 30 2 * * *", no_catchup=True
        )
        for n in range(5)
    ]
    assert {one.recurring_run_id for one in kfp.schedules()} == set(made)
    kfp.switch(made[0], False)
    assert server.schedules[made[0]]["status"] == "DISABLED"
    kfp.switch(made[0], True)
    assert server.schedules[made[0]]["status"] == "ENABLED"
    kfp.unschedule(made[0])
    assert len(kfp.schedules()) == 4
    with pytest.raises(UserError, match=r"recurring run .* not found"):
        kfp.unschedule(made[0])


def test_logs_of_a_pod_are_read_and_those_of_one_that_is_gone_are_empty(server, text):
    kfp = Kfp(Access(server.url))
    run = started(kfp, text)
    server.logs[run, "pod-1"] = "epoch 1\nüber\n"
    assert kfp.log(run, "pod-1") == "epoch 1\nüber\n"
    assert kfp.log(run, "pod-2") == ""


def test_several_users_need_a_namespace_and_a_token(tmp_path):
    with serving(multi_user=True, token="secret") as server:
        token = tmp_path / "token"
        token.write_text("secret\n")
        with pytest.raises(UserError, match=r"can't reach it: HTTP 401.*\n    fix: say who you are: --token-file"):
            Kfp(Access(server.url, "team"))
        with pytest.raises(LaunchError, match=r"serves several users and was not told whose runs are meant\n    fix: .*--namespace"):
            Kfp(Access(server.url, token="secret"))
        for access in (Access(server.url, "team", token="secret"), Access(server.url, "team", token_file=str(token))):
            kfp = Kfp(access)
            kfp.experiment("cotrain")
        assert [one["namespace"] for one in server.experiments.values()] == ["team"]
        assert kfp.url("7").endswith("/#/runs/details/7?ns=team")
        with pytest.raises(
            UserError, match=r"HTTP 403, PermissionDenied.*\n    fix: ask for the role to edit pipelines in namespace other"
        ):
            Kfp(Access(server.url, "other", token="secret")).experiment("cotrain")


def test_a_token_that_is_renewed_is_read_anew(tmp_path, text):
    with serving(multi_user=True, token="first") as server:
        token = tmp_path / "token"
        token.write_text("first")
        kfp = Kfp(Access(server.url, "team", token_file=str(token)))
        run = started(kfp, text)
        token.write_text("second")
        server.token = "second"
        assert kfp.run(run).state == "PENDING"


def test_one_user_is_asked_for_no_namespace(server):
    kfp = Kfp(Access(server.url, "team"))
    kfp.experiment("cotrain")
    assert [one.get("namespace") or "" for one in server.experiments.values()] == [""]
    assert "ns=" not in kfp.url("7")


def test_a_page_to_log_in_is_not_taken_for_the_server():
    with serving(token="secret") as server:
        server.page = "<html><title>Sign in</title></html>"
        with pytest.raises(CotrainError, match=r"page to log in|Sign in|can't reach it") as caught:
            Kfp(Access(server.url))
        assert caught.value.exit_code == 2


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_a_server_that_is_not_there_is_told_at_once():
    with pytest.raises(LaunchError, match=r"can't be reached: .*refused\n    fix: .*port-forward svc/ml-pipeline"):
        Kfp(Access(f"http://127.0.0.1:{free_port()}"))


@pytest.mark.parametrize(
    ("status", "kind", "says"), [(404, UserError, "address"), (500, LaunchError, "deploy/ml-pipeline"), (429, LaunchError, "try again")]
)
def test_what_a_server_answers_is_told_with_a_remedy(server, status, kind, says):
    server.away = status
    with pytest.raises(kind, match=f"HTTP {status}, upstream connect error\n    fix: .*{says}"):
        Kfp(Access(server.url))


def certificate(folder: Path) -> tuple[str, str]:
    """A certificate for localhost that nobody has signed, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, False).add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256())
    )  # fmt: skip
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(*plain))
    return str(folder / "ca.pem"), str(folder / "key.pem")


def test_a_certificate_that_is_not_known_is_told_and_one_that_is_named_is_taken(tmp_path):
    pair = certificate(tmp_path)
    with serving(certificate=pair) as server:
        with pytest.raises(LaunchError, match=r"no secure connection: .*\n    fix: name the certificate authority: --ca-file"):
            Kfp(Access(server.url))
        assert Kfp(Access(server.url, ca_file=pair[0])).namespace is None


@pytest.mark.parametrize(
    ("endpoint", "given", "says"),
    [
        (None, {}, "no Kubeflow Pipelines server is known\n    fix: give its address: --kfp"),
        ("ml-pipeline:8888", {}, "'ml-pipeline:8888' is no URL\n    fix: write http"),
        ("http://x", {"token_file": "/nowhere"}, "--token-file: there is no readable file /nowhere"),
        ("http://x", {"ca_file": "/nowhere"}, "--ca-file: there is no readable file /nowhere"),
    ],
)
def test_access_that_can_not_work_is_told_before_anything_is_asked(endpoint, given, says, monkeypatch):
    for name in ("KF_PIPELINES_ENDPOINT", "KUBERNETES_SERVICE_HOST", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(LaunchError, match=says):
        Access.found(endpoint, **given)


def test_inside_a_cluster_the_server_is_known(monkeypatch):
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert Access.found(None).endpoint == "http://ml-pipeline.kubeflow.svc.cluster.local:8888"


def test_the_secrets_of_access_are_not_shown():
    assert "secret" not in repr(Access("http://x", token="secret", cookie="secret"))


def test_parameters_are_measured_as_the_server_does(server, text):
    kfp = Kfp(Access(server.url))
    room = 10_000 - len(json.dumps(SPEC))
    assert fits(SPEC | {"spec": "{}" + "x" * room})
    assert started(kfp, text, spec="{}" + "x" * room)
    assert not fits(SPEC | {"spec": "{}" + "x" * (room + 1)})
    with pytest.raises(UserError, match="exceed maximum size of 10000"):
        started(kfp, text, spec="{}" + "x" * (room + 1))
