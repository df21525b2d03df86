"""A Kubeflow Pipelines API server of the tests: stateful, over HTTP, with the answers and refusals of the real one.

What it knows of the API (paths, JSON names, limits, error bodies) is that of backend/api/v2beta1 of Kubeflow Pipelines 2.17.
"""

from __future__ import annotations

import email.parser
import email.policy
import json
import re
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

Json = dict[str, Any]
_LIMIT = 10_000


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class KfpServer:
    """State, and what the tests may set: users, `away` (HTTP status of every answer), `on_run` (called with a run that was created)."""

    def __init__(self, multi_user: bool = False, token: str | None = None, namespaces: tuple[str, ...] = ("team",)) -> None:
        self.multi_user, self.token, self.namespaces = multi_user, token, namespaces
        self.pipelines: dict[str, Json] = {}
        self.versions: dict[str, Json] = {}
        self.experiments: dict[str, Json] = {}
        self.runs: dict[str, Json] = {}
        self.schedules: dict[str, Json] = {}
        self.logs: dict[tuple[str, str], str] = {}
        self.requests: list[tuple[str, str]] = []
        self.away: int | None = None
        self.page = ""
        self.on_run: Callable[[Json], None] = lambda run: None
        self.lock = threading.RLock()
        self.url = ""

    def finish(self, run: str, state: str = "SUCCEEDED") -> None:
        self.runs[run] |= {"state": state, "finished_at": _now()}

    def step(self, run: str, name: str, state: str, pod: str | None = None) -> None:
        """Say how a step of a run is doing."""
        tasks = self.runs[run].setdefault("run_details", {"task_details": []})["task_details"]
        tasks[:] = [task for task in tasks if task["display_name"] != name]
        children = {"child_tasks": [{"pod_name": pod}]} if pod else {}
        tasks.append(
            {"run_id": run, "task_id": uuid.uuid4().hex, "display_name": name, "state": state, "create_time": _now(), "start_time": _now()}
            | children
            | ({"end_time": _now()} if state in ("SUCCEEDED", "FAILED") else {})
        )

    # --- what is asked ----------------------------------------------------------------------------------------------

    def get(self, path: str, query: dict[str, str]) -> Any:
        if path == "/apis/v2beta1/healthz":
            return {"multi_user": self.multi_user, "pipeline_store": "database"}
        if path == "/apis/v2beta1/pipelines":
            return self._list("pipelines", self._mine(self.pipelines, query), query)
        if found := re.fullmatch(r"/apis/v2beta1/pipelines/([^/]+)/versions", path):
            of = [version for version in self.versions.values() if version["pipeline_id"] == found[1]]
            return self._list("pipeline_versions", of, query)
        if path == "/apis/v2beta1/experiments":
            return self._list("experiments", self._mine(self.experiments, query), query)
        if path == "/apis/v2beta1/runs":
            runs = [run for run in self.runs.values() if query.get("experiment_id") in (None, "", run["experiment_id"])]
            return self._list("runs", runs, query)
        if found := re.fullmatch(r"/apis/v2beta1/runs/([^/:]+)", path):
            return self._one(self.runs, found[1], "run")
        if path == "/apis/v2beta1/recurringruns":
            return self._list("recurringRuns", self._mine(self.schedules, query), query)
        if found := re.fullmatch(r"/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", path):
            if (found[1], found[2]) not in self.logs:
                raise Refusal(500, f"pods {found[2]!r} not found")
            return self.logs[found[1], found[2]]
        raise Refusal(404, "Not Found")

    def post(self, path: str, query: dict[str, str], body: bytes, kind: str) -> Any:
        if path == "/apis/v2beta1/pipelines":
            made = json.loads(body)
            if any(
                p["display_name"] == made["display_name"] and p.get("namespace") == made.get("namespace") for p in self.pipelines.values()
            ):
                raise Refusal(409, f"Already exist error: Failed to create a new pipeline. The name {made['display_name']} already exist")
            return self._put(self.pipelines, "pipeline_id", made)
        if path == "/apis/v2beta1/pipelines/upload_version":
            self._one(self.pipelines, query["pipelineid"], "pipeline")
            text = _uploaded(body, kind)
            (spec, *platform) = yaml.safe_load_all(text)
            if "pipelineInfo" not in spec:
                raise Refusal(400, "Invalid input error: unknown template format: pipeline spec is invalid")
            same = [v for v in self.versions.values() if v["pipeline_id"] == query["pipelineid"] and v["display_name"] == query["name"]]
            if same:
                raise Refusal(409, "Already exist error: Failed to create a new pipeline version. The name already exist")
            content = {"pipeline_spec": spec} | ({"platform_spec": platform[0]} if platform else {})
            made = {"pipeline_id": query["pipelineid"], "display_name": query["name"], "name": query["name"], "pipeline_spec": content}
            return self._put(self.versions, "pipeline_version_id", made)
        if path == "/apis/v2beta1/experiments":
            made = json.loads(body)
            self._permit(made.get("namespace"))
            return self._put(self.experiments, "experiment_id", made)
        if path == "/apis/v2beta1/runs":
            made = json.loads(body)
            self._runnable(made)
            run = self._put(self.runs, "run_id", made | {"state": "PENDING"})
            self.on_run(run)
            return run
        if found := re.fullmatch(r"/apis/v2beta1/runs/([^/:]+):terminate", path):
            run = self._one(self.runs, found[1], "run")
            if run["state"] in ("SUCCEEDED", "FAILED", "CANCELED"):
                raise Refusal(400, f"Failed to terminate a run {found[1]}. Only unfinished runs can be terminated")
            run["state"] = "CANCELING"
            return {}
        if path == "/apis/v2beta1/recurringruns":
            made = json.loads(body)
            self._runnable(made)
            self._check_trigger(made)
            namespace = self._one(self.experiments, made["experiment_id"], "experiment").get("namespace", "")
            return self._put(self.schedules, "recurring_run_id", made | {"status": made["mode"] + "D", "namespace": namespace})
        if found := re.fullmatch(r"/apis/v2beta1/recurringruns/([^/:]+):(enable|disable)", path):
            self._one(self.schedules, found[1], "recurring run")["status"] = found[2].upper() + "D"
            return {}
        raise Refusal(404, "Not Found")

    def delete(self, path: str) -> Any:
        if found := re.fullmatch(r"/apis/v2beta1/recurringruns/([^/:]+)", path):
            self._one(self.schedules, found[1], "recurring run")
            del self.schedules[found[1]]
            return {}
        raise Refusal(404, "Not Found")

    # --- as the real one --------------------------------------------------------------------------------------------

    def _runnable(self, made: Json) -> None:
        experiment = self._one(self.experiments, made["experiment_id"], "experiment")
        self._permit(experiment.get("namespace"))
        version = self._one(self.versions, made["pipeline_version_reference"]["pipeline_version_id"], "pipeline version")
        given = made.get("runtime_config", {}).get("parameters", {})
        size = len(json.dumps(given))
        if size > _LIMIT:
            raise Refusal(400, f"Invalid input error: The input parameter length exceed maximum size of {_LIMIT}")
        known = version["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
        unknown, wanted = set(given) - set(known), {name for name, p in known.items() if not p.get("isOptional")}
        if unknown or wanted - set(given):
            raise Refusal(
                400, f"Invalid input error: parameters {sorted(unknown)} are not known, {sorted(wanted - set(given))} are missing"
            )
        for name, value in given.items():
            if known[name].get("literals") and value not in known[name]["literals"]:
                raise Refusal(400, f"Invalid input error: input parameter {name} value {value} is not one of the allowed literals")

    def _check_trigger(self, made: Json) -> None:
        cron = made["trigger"].get("cron_schedule", {}).get("cron")
        if cron is not None and len(cron.split()) != 6:
            raise Refusal(400, f"Invalid input error: Schedule cron is not a supported format({cron})")
        if not 1 <= int(made["max_concurrency"]) <= 10:
            raise Refusal(400, "Invalid input error: The max concurrency of the job should be between 1 and 10")

    def _permit(self, namespace: str | None) -> None:
        if not self.multi_user:
            if namespace:
                raise Refusal(400, "Invalid input error: In single-user mode, CreateExperimentRequest shouldn't contain namespace")
            return
        if not namespace:
            raise Refusal(400, "Invalid input error: Namespace is empty")
        if namespace not in self.namespaces:
            raise Refusal(403, f"PermissionDenied: User 'robot' is not authorized with reason: not in the namespace {namespace}")

    def _mine(self, things: dict[str, Json], query: dict[str, str]) -> list[Json]:
        namespace = query.get("namespace") or ""
        if self.multi_user and namespace:
            self._permit(namespace)
        return [thing for thing in things.values() if (thing.get("namespace") or "") == namespace]

    def _put(self, things: dict[str, Json], name: str, made: Json) -> Json:
        made = made | {name: str(uuid.uuid4()), "created_at": _now()}
        things[made[name]] = made
        return made

    def _one(self, things: dict[str, Json], key: str, what: str) -> Json:
        if key not in things:
            raise Refusal(404, f"Failed to get a {what}: ResourceNotFoundError: {what} {key} not found")
        return things[key]

    def _list(self, name: str, things: list[Json], query: dict[str, str]) -> Json:
        for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
            assert predicate["operation"] in (1, "EQUALS"), predicate
            things = [thing for thing in things if thing.get(predicate["key"]) == predicate["stringValue"]]
        if query.get("sort_by", "").endswith(" desc"):
            things = things[::-1]
        at, size = int(query.get("page_token") or 0), min(int(query.get("page_size") or 20), 2)  # pages are short, so that all are read
        more = {"next_page_token": str(at + size)} if at + size < len(things) else {}
        return {name: things[at : at + size], "total_size": len(things), **more}


class _Handler(BaseHTTPRequestHandler):
    state: KfpServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(lambda path, query, body: self.state.get(path, query))

    def do_POST(self) -> None:
        self._answer(lambda path, query, body: self.state.post(path, query, body, self.headers.get("Content-Type", "")))

    def do_DELETE(self) -> None:
        self._answer(lambda path, query, body: self.state.delete(path))

    def _answer(self, do: Callable[[str, dict[str, str], bytes], Any]) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        state = self.state
        try:
            with state.lock:
                state.requests.append((self.command, url.path))
                if state.away:
                    raise Refusal(state.away, "upstream connect error")
                if state.token and self.headers.get("Authorization") != f"Bearer {state.token}":
                    if state.page:
                        return self._send(200, state.page.encode(), "text/html")
                    raise Refusal(401, "Unauthenticated: Request header error: there is no user identity header")
                answer = do(unquote(url.path), query, body)
            text = answer if isinstance(answer, str) else json.dumps(answer)
            self._send(200, text.encode(), "text/plain" if isinstance(answer, str) else "application/json")
        except Refusal as refusal:
            message = {"error": str(refusal), "code": refusal.status, "message": str(refusal), "details": []}
            self._send(refusal.status, json.dumps(message).encode(), "application/json")

    def _send(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _uploaded(body: bytes, kind: str) -> str:
    head = f"Content-Type: {kind}\r\nMIME-Version: 1.0\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    (part,) = message.iter_parts()
    return part.get_payload(decode=True).decode()


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@contextmanager
def serving(certificate: tuple[str, str] | None = None, **options: Any) -> Iterator[KfpServer]:
    """A server on a free port; over TLS where a certificate and its key are given."""
    state = KfpServer(**options)
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    http.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        http.socket = context.wrap_socket(http.socket, server_side=True)
    state.url = f"http{'s' if certificate else ''}://{'localhost' if certificate else '127.0.0.1'}:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
