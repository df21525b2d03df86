"""A namespace of the cluster under test, a store that its pods reach, and launchers that train there."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from cluster_settings import Settings
from command import document, write_csv
from s3_server import CREDENTIALS, s3_process

from components.cluster import Cluster
from trainer.check import load_spec
from trainer.prepare import prepare
from trainer.requests import joint_requests, write_request
from trainer.stores import open_store

Json = dict[str, Any]
HERE = Path(__file__).parent
K8S = HERE.parent / "k8s"
CLUSTER_WIDE = ("Namespace", "ResourceFlavor", "ClusterQueue")
RESTRICTED = "pod-security.kubernetes.io/enforce"


class Launcher:
    """A launcher that runs, and what it has said so far."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def events(self, name: str) -> list[Json]:
        """Events of a name, its own and those of rank 0."""
        found = []
        for line in list(self.lines):
            with suppress(ValueError, TypeError, AttributeError):
                event = json.loads(line)
                if event.get("event") == name:
                    found.append(event)
        return found

    def ended(self, wait_s: float) -> Json:
        """What came of it; its exit code as `code`."""
        try:
            code = self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"still training after {wait_s:.0f} s:\n" + "\n".join(self.lines[-40:])) from None
        self._reader.join(10)
        assert self.lines, f"ended with {code} without a word"
        try:
            return {"code": code, **json.loads(self.lines[-1])}
        except ValueError:
            raise AssertionError(f"ended with {code}:\n" + "\n".join(self.lines[-40:])) from None


def until(what: str, found: Callable[[], Any], wait_s: float, launcher: Launcher | None = None, every_s: float = 1.0) -> Any:
    """What `found` finds as soon as it is something; else what a launcher has said meanwhile."""
    deadline = time.monotonic() + wait_s
    while True:
        if thing := found():
            return thing
        said = "\n".join(launcher.lines[-40:]) if launcher else ""
        assert time.monotonic() < deadline, f"not within {wait_s:.0f} s: {what}\n{said}"
        assert not launcher or launcher.process.poll() is None, f"it ended before: {what}\n{said}"
        time.sleep(every_s)


@dataclass
class Place:
    """Where the tests train."""

    settings: Settings
    api: Any
    """`kubernetes.client.ApiClient`."""
    namespace: str
    root: str
    environment: dict[str, str]
    """Of this machine's launchers: the cluster, the store."""
    pod_endpoint: str | None
    folder: Path
    launchers: list[Launcher] = field(default_factory=list)
    _count: int = 0

    @property
    def cluster(self) -> Cluster:
        """The project's own client."""
        return Cluster(self.api, self.namespace, patience_s=60)

    def send(self, method: str, path: str, body: Any = None, **query: str) -> Json:
        """A call of the API; ApiException where it says no."""
        answer = self.api.call_api(
            path,
            method,
            query_params=list(query.items()),
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=(10, 60),
        )
        return json.loads(answer.data)

    def path(self, thing: Json, name: str = "") -> str:
        """Where objects of this kind are, or one of them."""
        version, resource = thing["apiVersion"], f"{thing['kind'].lower()}s"
        prefix = f"/api/{version}" if version == "v1" else f"/apis/{version}"
        middle = "" if thing["kind"] in CLUSTER_WIDE else f"/namespaces/{self.namespace}"
        return f"{prefix}{middle}/{resource}" + (f"/{name}" if name else "")

    def create(self, thing: Json) -> Json:
        """Create any object, refusing unknown fields."""
        return self.send("POST", self.path(thing), thing, fieldValidation="Strict")

    def delete(self, thing: Json) -> None:
        """Delete an object, if it is there."""
        from kubernetes.client import ApiException

        with suppress(ApiException):
            self.send("DELETE", self.path(thing, thing["metadata"]["name"]))

    # --- training ------------------------------------------------------------------------------------------------

    def request(self, launcher: str, steps: int = 40, **cluster: Any) -> Json:
        """A training of two nodes of one rank each, not yet done, with its data in the store."""
        self._count += 1
        table = self.folder / "table.csv"
        if not table.exists():
            write_csv(table)
        made = document(phases={"joint": {"steps": steps}}, name="test")
        made["data"]["table"]["uri"] = str(table)
        made["train"] |= {"checkpoint": {"every_steps": 100, "every_minutes": None}, "validate_every": max(10, steps // 4)}
        # a run of its own for each: nothing that another test has trained is found
        made["seed"] = int(self.settings.run, 16) + self._count
        made["cluster"] |= {"nodes": 2, "launcher": launcher, "grace_s": 20, "deadline_hours": 0.5, "shm_gib": 0.25} | cluster
        spec = load_spec(made)
        data = {}
        for name, part in spec.data.items():
            result = prepare(name, part, self.root)
            manifest = result.json("manifest.json")
            data[name] = {"key": result.key, "digest": manifest["digest"], "rows": manifest["rows"]}
        (request,) = joint_requests(spec, data)
        write_request(self.root, request)
        return request

    def launch(self, request: Json, **changed: str) -> Launcher:
        """Train from this machine."""
        environment = {**self.environment, **changed}
        launcher = Launcher([sys.executable, str(HERE / "cluster_launch.py"), self.root, request["key"]], environment)
        self.launchers.append(launcher)
        return launcher

    def train(self, request: Json, **changed: str) -> Json:
        """Train, and what came of it."""
        return self.launch(request, **changed).ended(self.settings.wait_s)

    def pods(self, request: Json) -> list[Json]:
        """The pods of a training job that are not on their way out."""
        found, _ = self.cluster.list("pods", labelSelector=f"cotrain.io/key={request['key']}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def running(self, request: Json, nodes: int = 2) -> list[Json]:
        """Its pods once all of them train."""

        def all_run() -> list[Json]:
            found = [pod for pod in self.pods(request) if pod["status"].get("phase") == "Running"]
            return found if len(found) == nodes else []

        return until("all pods run", all_run, self.settings.wait_s)

    def job(self, request: Json) -> Json | None:
        """The TrainJob or Job of a request."""
        resource = f"{request['spec']['cluster']['launcher']}s"
        found, _ = self.cluster.list(resource, labelSelector=f"cotrain.io/key={request['key']}")
        return found[0] if found else None

    # --- what every pod gets --------------------------------------------------------------------------------------

    @property
    def pod(self) -> Json:
        """COTRAIN_POD: code and storage of the host, and where the store is."""
        return pod_extras(self.settings, self.root, self.pod_endpoint)


def pod_extras(settings: Settings, root: str, endpoint: str | None) -> Json:
    """Volumes, mounts and variables that training pods need for these settings."""
    volumes: list[Json] = []
    mounts: list[Json] = []
    for number, folder in enumerate(settings.code):
        volumes.append({"name": f"code-{number}", "hostPath": {"path": folder}})
        mounts.append({"name": f"code-{number}", "mountPath": folder, "readOnly": True})
    if "://" not in root:
        where = os.path.dirname(root)
        kind, _, name = settings.storage.partition(":")
        volumes.append(
            {"name": "root", **({"persistentVolumeClaim": {"claimName": name}} if kind == "claim" else {"hostPath": {"path": where}})}
        )
        mounts.append({"name": "root", "mountPath": where})
    env = [{"name": "PYTHONPATH", "value": ":".join(settings.code)}] if settings.code else []
    if endpoint:
        env.append({"name": "AWS_ENDPOINT_URL_S3", "value": endpoint})
    return {"volumes": volumes, "volumeMounts": mounts, "env": env}


@contextmanager
def place(settings: Settings, folder: Path) -> Iterator[Place]:
    """A namespace with all that training needs; when this is left nothing of it is."""
    from kubernetes import client, config

    configuration = client.Configuration()
    config.load_kube_config(config_file=settings.kubeconfig, client_configuration=configuration)
    api = client.ApiClient(configuration)
    with _store(settings, configuration.host, folder) as (root, aws, pod_endpoint):
        namespace = settings.namespace or f"cotrain-test-{settings.run}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "COTRAIN_"))} | aws
        environment |= {
            "KUBECONFIG": settings.kubeconfig,
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
            "COTRAIN_NAMESPACE": namespace,
            "COTRAIN_IMAGE": settings.image,
            "COTRAIN_STORE_SECRET": "cotrain-store" if aws.get("AWS_ACCESS_KEY_ID") else "",
            "COTRAIN_POD": json.dumps(pod_extras(settings, root, pod_endpoint)),
        }
        found = Place(settings, api, namespace, root, environment, pod_endpoint, folder)
        before = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        os.environ.update(aws)
        made: list[Json] = []
        try:
            made = _furnish(found, aws)
            yield found
        finally:
            for launcher in found.launchers:
                launcher.process.kill()
            _clear(found, made)
            with suppress(Exception):
                open_store(root).delete("")
            for name in aws:
                os.environ.pop(name, None)
            os.environ.update(before)


@contextmanager
def _store(settings: Settings, server: str, folder: Path) -> Iterator[tuple[str, dict[str, str], str | None]]:
    """The root, what AWS clients of this machine need for it, and the endpoint as pods see it."""
    if settings.root:
        root = f"{settings.root.rstrip('/')}/cotrain-test-{settings.run}"
        if "://" not in root:
            Path(root).mkdir(parents=True)
            Path(root).chmod(0o777)  # pods are another user
        yield root, dict(settings.aws), settings.pod_endpoint or settings.aws.get("AWS_ENDPOINT_URL_S3")
        return
    address = settings.address or _own_address(server)
    with s3_process("--host", "0.0.0.0") as port:
        aws = {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}"}
        import boto3

        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=aws["AWS_ENDPOINT_URL_S3"], **keys).create_bucket(Bucket="cotrain-test")
        yield "s3://cotrain-test/runs", aws, f"http://{address}:{port}"


def _own_address(server: str) -> str:
    """The address of this machine that the cluster most likely reaches: the one it is reached from, if it is another machine."""
    host = urlsplit(server).hostname or ""
    target = "192.0.2.1" if host in ("localhost", "127.0.0.1", "0.0.0.0", "::1") else host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((target, 9))
        return probe.getsockname()[0]


def rendered(settings: Settings, namespace: str, folder: Path) -> list[Json]:
    """k8s/base with our image, as kustomize renders it; as it is written where there is no kustomize."""
    shutil.copytree(K8S, folder / "k8s", dirs_exist_ok=True)
    overlay = folder / "k8s" / "overlays" / "test"
    overlay.mkdir(exist_ok=True)
    name, _, tag = settings.image.rpartition(":") if ":" in settings.image.rpartition("/")[2] else (settings.image, "", "latest")
    (overlay / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {"namespace": namespace, "resources": ["../../base"], "images": [{"name": "cotrain", "newName": name, "newTag": tag}]}
        )
    )
    tool = next(
        ([found, *rest] for tool, rest in (("kubectl", ["kustomize"]), ("kustomize", ["build"])) if (found := shutil.which(tool))), None
    )
    if tool:
        text = subprocess.run([*tool, str(overlay)], capture_output=True, text=True, check=True).stdout
    else:
        text = "\n---\n".join(file.read_text() for file in sorted((K8S / "base").glob("[!k]*.yaml"))).replace(
            "image: cotrain", f"image: {settings.image}"
        )
    return [thing for thing in yaml.safe_load_all(text) if thing]


def _furnish(where: Place, aws: Mapping[str, str]) -> list[Json]:
    from kubernetes.client import ApiException

    made: list[Json] = []

    def make(thing: Json) -> None:
        try:
            where.create(thing)
            made.append(thing)
        except ApiException as error:
            # it is there already, and not ours to remove; or the cluster knows nothing of the kind: tests that need it say so
            if error.status not in (404, 409):
                raise

    if not where.settings.namespace:
        # folders of the host are not for restricted pods
        level = "privileged" if where.pod["volumes"] else "restricted"
        make({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": where.namespace, "labels": {RESTRICTED: level}}})
    if aws.get("AWS_ACCESS_KEY_ID"):
        secret = {name: aws[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN") if aws.get(name)}
        make({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cotrain-store"}, "stringData": secret})
        region = {"AWS_DEFAULT_REGION": aws.get("AWS_DEFAULT_REGION") or "us-east-1"}
        make({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cotrain-store"}, "data": region})
    for thing in rendered(where.settings, where.namespace, where.folder):
        if thing["kind"] == "CronJob":
            thing["spec"]["suspend"] = True  # nothing is to be swept away under a test
        make(thing)
    return made


def _clear(where: Place, made: list[Json]) -> None:
    """Leave the cluster as it was found."""
    for resource in ("trainjobs", "jobs"):
        with suppress(Exception):
            for job in where.cluster.list(resource, labelSelector="app.kubernetes.io/name=cotrain")[0]:
                if job["metadata"].get("labels", {}).get("cotrain.io/key"):
                    where.cluster.delete(resource, job["metadata"]["name"])
    for thing in reversed(made):
        with suppress(Exception):
            where.delete(thing)
