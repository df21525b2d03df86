"""A Kubernetes API over HTTP, as small as training jobs need it, with its state and its bad days.

It numbers every change, so that a watch goes on from where it was and can come too late (410); kmock, at the time of writing, numbers
none. Objects are created, found by label and field selectors, merged into, and deleted with all that they own. Nothing happens by
itself: a test, or a `controller` of it, changes objects as a cluster would.
"""

from __future__ import annotations

import copy
import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Json = dict[str, Any]
_PATH = re.compile(
    r"^/(?P<api>api/v1|apis/[^/]+/[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<part>log))?$"
)
KINDS = {
    "trainjobs": "TrainJob",
    "trainingruntimes": "TrainingRuntime",
    "jobsets": "JobSet",
    "jobs": "Job",
    "pods": "Pod",
    "events": "Event",
    "services": "Service",
    "secrets": "Secret",
    "configmaps": "ConfigMap",
    "serviceaccounts": "ServiceAccount",
    "resourcequotas": "ResourceQuota",
    "namespaces": "Namespace",
    "nodes": "Node",
    "workloads": "Workload",
    "localqueues": "LocalQueue",
    "clusterqueues": "ClusterQueue",
    "workflows": "Workflow",
    "persistentvolumeclaims": "PersistentVolumeClaim",
}


@dataclass
class Fault:
    """What happens instead of an answer, to the next requests that fit. `status` 0 cuts the connection."""

    method: str
    path: str
    status: int
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    seen: int = 0


@dataclass
class KubeServer:
    """The state of a cluster. Tests read and change it directly; `address` is where it answers."""

    address: str = ""
    objects: dict[tuple[str, str, str], Json] = field(default_factory=dict)
    history: list[tuple[int, str, str, Json]] = field(default_factory=list)
    """Version, resource, type and object of every change."""
    version: int = 100
    oldest: int = 0
    """Watches from before this version are too late."""
    logs: dict[str, str] = field(default_factory=dict)
    """By pod, each line with its time stamp."""
    open_logs: set[str] = field(default_factory=set)
    """Pods whose log goes on: whoever follows it waits for more."""
    faults: list[Fault] = field(default_factory=list)
    cut_watches_after: int | None = None
    """Every watch is cut in the middle of a line after so many events."""
    cut_logs_after: int | None = None
    """Every log is cut after so many bytes."""
    denied: set[tuple[str, str]] = field(default_factory=set)
    """Verbs and resources that we have no right to; `secrets` are never ours to read unless a test says so."""
    absent: set[str] = field(default_factory=set)
    """Resources that the cluster does not know."""
    refuse: Callable[[str, Json], tuple[int, str, str] | None] = lambda resource, thing: None
    """What admission says of a new object: status, reason and message, or nothing."""
    controller: Callable[[Json], None] | None = None
    """Called in a thread of its own with every job that is created."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    read: list[tuple[str, str]] = field(default_factory=list)
    """Objects that were given away whole."""
    created: list[Json] = field(default_factory=list)
    deleted: list[tuple[str, str, str]] = field(default_factory=list)
    """Resource, name and propagation policy."""
    changed: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))
    closing: bool = False
    connections: set[Any] = field(default_factory=set)
    server: ThreadingHTTPServer | None = None

    def up(self, port: int = 0) -> None:
        """Answer."""
        handler = type("Handler", (_Handler,), {"kube": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def down(self) -> None:
        """Answer no more, and cut every connection, as a server that crashes."""
        assert self.server
        self.server.shutdown()
        self.server.server_close()
        with self.changed:
            for connection in self.connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self.connections.clear()

    def put(self, resource: str, thing: Json, namespace: str = "ns") -> Json:
        """Create an object, or replace it, as a controller would."""
        thing = copy.deepcopy(thing)
        meta = thing.setdefault("metadata", {})
        meta.setdefault("namespace", namespace)
        thing.setdefault("kind", KINDS[resource])
        with self.changed:
            key = (resource, meta["namespace"], meta["name"])
            before = self.objects.get(key)
            meta.setdefault("uid", before["metadata"]["uid"] if before else str(uuid.uuid4()))
            meta.setdefault("creationTimestamp", before["metadata"]["creationTimestamp"] if before else stamp())
            self._note(resource, "MODIFIED" if before else "ADDED", key, thing)
        return thing

    def remove(self, resource: str, name: str, namespace: str = "ns", cascade: bool = True) -> None:
        """Delete an object and, as the garbage collector would, what nobody else owns of what it owns."""
        with self.changed:
            gone = self.objects.pop((resource, namespace, name), None)
            if gone is None:
                return
            self._note(resource, "DELETED", None, gone)
            if not cascade:
                return
            there = {thing["metadata"]["uid"] for thing in self.objects.values()}
            for (kind, space, owned), thing in list(self.objects.items()):
                owners = [owner["uid"] for owner in thing["metadata"].get("ownerReferences") or []]
                if gone["metadata"]["uid"] in owners and not there & set(owners):
                    self.remove(kind, owned, space)

    def get(self, resource: str, name: str, namespace: str = "ns") -> Json | None:
        """An object as it is now."""
        with self.changed:
            return copy.deepcopy(self.objects.get((resource, namespace, name)))

    def status(self, resource: str, name: str, **status: Any) -> None:
        """Change the status of an object."""
        thing = self.get(resource, name)
        assert thing is not None
        thing["status"] = {**thing.get("status", {}), **status}
        self.put(resource, thing)

    def forget(self) -> None:
        """Compact the history: a watch that goes on from before now is too late."""
        with self.changed:
            self.oldest = self.version
            self.history.clear()

    def fail(self, method: str, path: str, status: int, times: int = 1, **headers: str) -> Fault:
        """Let the next requests that fit go wrong."""
        fault = Fault(method, path, status, times, headers)
        self.faults.append(fault)
        return fault

    def of(self, resource: str) -> list[Json]:
        """All objects of a kind."""
        with self.changed:
            return [copy.deepcopy(thing) for (kind, _, _), thing in self.objects.items() if kind == resource]

    def _note(self, resource: str, happened: str, key: tuple[str, str, str] | None, thing: Json) -> None:
        self.version += 1
        thing["metadata"]["resourceVersion"] = str(self.version)
        if key:
            self.objects[key] = thing
        self.history.append((self.version, resource, happened, copy.deepcopy(thing)))
        self.changed.notify_all()


def stamp(seconds: float | None = None) -> str:
    """A time as the API writes it."""
    return datetime.fromtimestamp(time.time() if seconds is None else seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kube: KubeServer

    def setup(self) -> None:
        super().setup()
        with self.kube.changed:
            self.kube.connections.add(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        split = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(split.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        with self.kube.changed:
            self.kube.requests.append((self.command, self.path))
        if self._faulty(split.path + ("?watch" if query.get("watch") == "true" else "")):
            return
        if split.path == "/version":
            self._answer({"major": "1", "minor": "35"})
        elif split.path.endswith("/selfsubjectaccessreviews"):
            asked = body["spec"]["resourceAttributes"]
            name = asked["resource"] + (f"/{asked['subresource']}" if "subresource" in asked else "")
            self._answer({**body, "status": {"allowed": (asked["verb"], name) not in self.kube.denied}}, 201)
        elif split.path == "/apis/kueue.x-k8s.io":
            self._answer({"preferredVersion": {"groupVersion": "kueue.x-k8s.io/v1beta2"}})
        else:
            found = _PATH.match(split.path)
            if not found or found["resource"] not in KINDS or found["resource"] in self.kube.absent:
                self._error(404, "NotFound", "the server could not find the requested resource")
                return
            self._resource(found["resource"], found["namespace"] or "", found["name"], found["part"], query, body)

    do_GET = do_POST = do_PATCH = do_DELETE = _serve

    def _faulty(self, path: str) -> bool:
        with self.kube.changed:
            fault = next((f for f in self.kube.faults if f.seen < f.times and f.method == self.command and re.search(f.path, path)), None)
            if fault is None:
                return False
            fault.seen += 1
        if fault.status == 0:
            self.close_connection = True
            self.connection.close()
        else:
            self._error(fault.status, "Fault", f"a fault of {fault.status}", fault.headers)
        return True

    def _resource(
        self, resource: str, namespace: str, name: str | None, part: str | None, query: dict[str, str], body: Json | None
    ) -> None:
        kube, verb = self.kube, {"GET": "get" if name else "list", "POST": "create", "PATCH": "patch", "DELETE": "delete"}[self.command]
        verb = "watch" if query.get("watch") == "true" else verb
        if (verb, resource) in kube.denied:
            who = f'User "u" cannot {verb} resource "{resource}" in the namespace "{namespace}"'
            self._error(403, "Forbidden", f"{resource} is forbidden: {who}")
        elif part == "log":
            self._log(name or "", query)
        elif verb == "watch":
            self._watch(resource, namespace, query)
        elif self.command == "GET" and name is None:
            with kube.changed:
                items = [thing for (kind, space, _), thing in kube.objects.items() if kind == resource and space in (namespace, "")]
                items = [copy.deepcopy(thing) for thing in items if _fits(thing, query)]
                version = str(kube.version)
            for item in items:
                item.pop("kind", None)  # items of a list don't say what they are
            self._answer({"kind": f"{KINDS[resource]}List", "metadata": {"resourceVersion": version}, "items": items})
        elif self.command == "POST":
            self._create(resource, namespace, query, body or {})
        else:
            self._one(resource, namespace, name or "", body or {})

    def _create(self, resource: str, namespace: str, query: dict[str, str], thing: Json) -> None:
        kube, name = self.kube, thing["metadata"]["name"]
        refusal = kube.refuse(resource, thing)
        if refusal:
            self._error(*refusal)
            return
        assert query.get("fieldValidation") == "Strict"
        with kube.changed:
            if (resource, namespace, name) in kube.objects:
                self._error(409, "AlreadyExists", f'{resource} "{name}" already exists')
                return
            made = kube.put(resource, thing, namespace)
            kube.created.append(made)
        if kube.controller and resource in ("trainjobs", "jobs"):
            threading.Thread(target=kube.controller, args=(made,), daemon=True).start()
        self._answer(made, 201)

    def _one(self, resource: str, namespace: str, name: str, body: Json) -> None:
        kube = self.kube
        with kube.changed:
            thing = kube.objects.get((resource, namespace, name)) or kube.objects.get((resource, "", name))
            if thing is None:
                self._error(404, "NotFound", f'{resource} "{name}" not found')
            elif self.command == "GET" and "as=PartialObjectMetadata" in self.headers.get("Accept", ""):
                self._answer({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": thing["metadata"]})
            elif self.command == "GET":
                kube.read.append((resource, name))
                self._answer(thing)
            elif self.command == "PATCH":
                version = body.get("metadata", {}).pop("resourceVersion", None)
                if version not in (None, thing["metadata"]["resourceVersion"]):
                    self._error(409, "Conflict", "the object has been modified")
                    return
                self._answer(kube.put(resource, _merge(copy.deepcopy(thing), body), namespace))
            else:
                wanted = body.get("preconditions", {})
                meta = thing["metadata"]
                if (
                    wanted.get("uid", meta["uid"]) != meta["uid"]
                    or wanted.get("resourceVersion", meta["resourceVersion"]) != meta["resourceVersion"]
                ):
                    self._error(409, "Conflict", "the precondition does not hold")
                    return
                kube.deleted.append((resource, name, body.get("propagationPolicy", "")))
                kube.remove(resource, name, namespace)
                self._answer({"kind": "Status", "status": "Success"})

    def _watch(self, resource: str, namespace: str, query: dict[str, str]) -> None:
        kube, at, told = self.kube, int(query["resourceVersion"]), 0
        self._stream()
        until = time.monotonic() + float(query.get("timeoutSeconds", 300))
        while time.monotonic() < until:
            with kube.changed:
                if at < kube.oldest:
                    gone = {
                        "kind": "Status",
                        "code": 410,
                        "reason": "Expired",
                        "message": f"too old resource version: {at} ({kube.oldest})",
                    }
                    self._chunk(json.dumps({"type": "ERROR", "object": gone}) + "\n")
                    break
                news = [entry for entry in kube.history if entry[0] > at]
                if not news and not kube.closing:
                    kube.changed.wait(0.5)
                    continue
            for version, kind, happened, thing in news:
                at = version
                if kind != resource or thing["metadata"]["namespace"] not in (namespace, "") or not _fits(thing, query):
                    continue
                line = json.dumps({"type": happened, "object": thing}) + "\n"
                if kube.cut_watches_after is not None and told >= kube.cut_watches_after:
                    self._chunk(line[: len(line) // 2])
                    self._cut()
                    return
                if not self._chunk(line):
                    return
                told += 1
            if kube.closing:
                break
        self._chunk("")

    def _log(self, pod: str, query: dict[str, str]) -> None:
        kube = self.kube
        thing = next((t for (kind, _, name), t in kube.objects.items() if kind == "pods" and name == pod), None)
        if thing is None and pod not in kube.logs:
            self._error(404, "NotFound", f'pods "{pod}" not found')
            return
        if query.get("previous") == "true":
            pod = f"{pod}/previous"
        if pod not in kube.logs:
            self._error(400, "BadRequest", f'container "node" in pod "{pod}" is waiting to start: ContainerCreating')
            return
        self._stream()
        said, sent = 0, 0
        while True:
            with kube.changed:
                text = kube.logs[pod][said:]
                more = pod in kube.open_logs and query.get("follow") == "true" and not kube.closing
                if not text and more:
                    kube.changed.wait(0.2)
                    continue
            said += len(text)
            lines = [line for line in text.splitlines(keepends=True) if line[:19] >= query.get("sinceTime", "")[:19]]
            if query.get("timestamps") != "true":
                lines = [line.partition(" ")[2] for line in lines]
            if "tailLines" in query:
                lines = lines[-int(query["tailLines"]) :]
            whole = "".join(lines)
            if kube.cut_logs_after is not None and query.get("follow") == "true" and sent + len(whole) > kube.cut_logs_after:
                self._chunk(whole[: kube.cut_logs_after - sent])
                self._cut()
                return
            sent += len(whole)
            if whole and not self._chunk(whole):
                return
            if not more:
                self._chunk("")
                return

    def _answer(self, thing: Json, status: int = 200) -> None:
        self._send(status, json.dumps(thing).encode(), {})

    def _error(self, status: int, reason: str, message: str, headers: dict[str, str] | None = None) -> None:
        told = {"kind": "Status", "status": "Failure", "code": status, "reason": reason, "message": message}
        self._send(status, json.dumps(told).encode(), headers or {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, text: str) -> bool:
        data = text.encode()
        try:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
        except OSError:
            self.close_connection = True
            return False
        return True

    def _cut(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(2)


def _fits(thing: Json, query: dict[str, str]) -> bool:
    labels = thing["metadata"].get("labels", {})
    wanted = dict(part.split("=", 1) for part in query.get("labelSelector", "").split(",") if part)
    named = dict(part.split("=", 1) for part in query.get("fieldSelector", "").split(",") if part)
    return wanted.items() <= labels.items() and named.get("metadata.name", thing["metadata"]["name"]) == thing["metadata"]["name"]


def _merge(thing: Any, change: Json) -> Any:
    for name, value in change.items():
        if value is None:
            thing.pop(name, None)
        elif isinstance(value, dict) and isinstance(thing.get(name), dict):
            _merge(thing[name], value)
        else:
            thing[name] = value
    return thing


@contextmanager
def serving(port: int = 0) -> Iterator[KubeServer]:
    """A cluster that answers, for as long as the block lasts."""
    kube = KubeServer()
    kube.up(port)
    try:
        yield kube
    finally:
        with kube.changed:
            kube.closing = True
            kube.changed.notify_all()
        kube.down()


def kubeconfig(folder: Path, address: str) -> Path:
    """A kubeconfig for it."""
    file = folder / "kubeconfig"
    parts = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": address}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }
    file.write_text(yaml.safe_dump(parts))
    return file
