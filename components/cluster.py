"""Kubernetes, as far as training jobs need it: the only file that talks to it. Objects are JSON, as the API has them.

What can't be reached is tried again for half an hour, with jitter and as the server asks (Retry-After): an API server that restarts
or throttles is no reason to give a training run up. What the server refuses is not tried again, unless it has allowed it before: one
that has just started does not know its roles yet, and refuses for some seconds whatever anybody asks.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from components.podlogs import Gone, Waiting
from components.watching import LONGEST_PAUSE_S, PAUSE_S, Expired, Interrupted, Json
from trainer.errors import LaunchError
from trainer.observe import emit

if TYPE_CHECKING:
    from components.follow import Followed
    from components.target import Target
    from trainer.errors import Fault
    from trainer.results import Result

PATIENCE_S = 1800.0
FIRST_PATIENCE_S = 120.0
"""For the first answer: an address that never answered is more likely wrong than busy."""
_ROLES_S = 300.0
"""How long a server may refuse what it has allowed before, until we believe it."""
_CONNECT_S, _READ_S = 10.0, 60.0
_WATCH_S = 290
"""A watch asks to be ended after this; one that says nothing for `_READ_S` may be dead, and is opened anew."""
_API = {
    "trainjobs": "apis/trainer.kubeflow.org/v1alpha1",
    "trainingruntimes": "apis/trainer.kubeflow.org/v1alpha1",
    "jobsets": "apis/jobset.x-k8s.io/v1alpha2",
    "jobs": "apis/batch/v1",
    "workloads": "apis/kueue.x-k8s.io/v1beta2",
    "localqueues": "apis/kueue.x-k8s.io/v1beta2",
    "clusterqueues": "apis/kueue.x-k8s.io/v1beta2",
    "workflows": "apis/argoproj.io/v1alpha1",
    "nodes": "api/v1",
}
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_CLUSTER_WIDE = ("namespaces", "nodes", "clusterqueues")


def train_there(root: str, request: dict[str, Any], target: Target, told: Callable[[Followed], None] | None = None) -> Result:
    """The result of a training request: found, or trained now by a job of the cluster; see `components.there`."""
    from components.there import train

    return train(Cluster.connect(target.namespace), root, request, target, told=told)


def lacking(request: dict[str, Any], target: Target, launcher: bool = True) -> list[Fault]:
    """What the cluster lacks for a training request and, if it is us who launch, does not let us do; see `components.checks`."""
    from components.checks import faults
    from components.manifests import render
    from components.target import launcher_of

    return faults(Cluster.connect(target.namespace), render(request, target, launcher_of(request["spec"]["cluster"])), launcher)


def unseen(namespace: str, resources: Sequence[str]) -> list[str]:
    """Which of these resources we may not look at."""
    cluster = Cluster.connect(namespace)
    return [resource for resource in resources if not cluster.may("list", resource)]


class Refused(Exception):
    """The server understood and said no. `status` is of HTTP, `reason` and `message` are the server's."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message


class Cluster:
    """One namespace of one cluster."""

    def __init__(self, api: Any, namespace: str, patience_s: float = PATIENCE_S) -> None:
        self._api, self.namespace, self._patience_s = api, namespace, patience_s
        self._kueue_api: str | None = None
        self._refused_since: dict[Any, float | None] = {}
        """By what had to be allowed for a request that was answered once: since when it is refused."""

    @classmethod
    def connect(cls, namespace: str, patience_s: float = PATIENCE_S) -> Cluster:
        """By the service account of this pod, else by KUBECONFIG or ~/.kube/config.

        Raises:
            LaunchError: if there is neither, or nobody answers.
        """
        from kubernetes import client, config

        settings = client.Configuration()
        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
                config.load_incluster_config(client_configuration=settings)
            else:
                config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=settings)
        except (config.ConfigException, OSError, TypeError) as error:
            raise LaunchError.at("KUBECONFIG", f"no cluster is known: {error}", "set KUBECONFIG, or write launcher: local") from None
        settings.retries = False  # tried again here, where it can be said
        settings.connection_pool_maxsize = 32
        cluster = cls(client.ApiClient(settings), namespace, min(patience_s, FIRST_PATIENCE_S))
        try:
            cluster._again(cluster._version)
        except (Interrupted, Refused) as error:
            where = settings.host
            raise LaunchError.at(where, f"does not answer as a Kubernetes API: {error}", "check with `kubectl version`") from None
        cluster._patience_s = patience_s
        return cluster

    def elsewhere(self, namespace: str) -> Cluster:
        """Another namespace of the same cluster."""
        return Cluster(self._api, namespace, self._patience_s)

    def create(self, resource: str, manifest: Json) -> Json:
        """Create an object, refusing fields that the server does not know. Conflict is Refused with status 409."""
        return self._json("POST", self._path(resource), {"fieldValidation": "Strict"}, manifest)

    def get(self, resource: str, name: str) -> Json | None:
        """An object, or None where there is none."""
        try:
            return self._json("GET", self._path(resource, name))
        except Refused as refused:
            if refused.status == 404:
                return None
            raise

    def exists(self, resource: str, name: str) -> bool:
        """Whether there is such an object. Only its metadata are asked for: what is in a Secret does not leave the server."""
        try:
            self._again(lambda: self._send("GET", self._path(resource, name), accept=_METADATA).data)
        except Refused as refused:
            if refused.status == 404:
                return False
            raise
        return True

    def list(self, resource: str, **selectors: str) -> tuple[list[Json], str]:
        """Objects and the resource version of the list. Selectors: labelSelector, fieldSelector."""
        found = self._json("GET", self._path(resource), {**selectors})
        return found["items"], found["metadata"].get("resourceVersion", "")

    def patch(self, resource: str, name: str, change: Json) -> Json:
        """Merge a change into an object."""
        return self._json("PATCH", self._path(resource, name), body=change, kind="application/merge-patch+json")

    def delete(self, resource: str, name: str, uid: str | None = None, version: str | None = None, foreground: bool = False) -> bool:
        """Ask for an object to be deleted, with all that it owns; whether it was there. With `uid` only that very object, and
        with `version` only if it is unchanged.

        In the foreground it stays, on its way out, until all that it owns is gone; in the background it goes at once.
        """
        options: Json = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground" if foreground else "Background"}
        if uid or version:
            options["preconditions"] = {**({"uid": uid} if uid else {}), **({"resourceVersion": version} if version else {})}
        try:
            self._json("DELETE", self._path(resource, name), body=options)
        except Refused as refused:
            if refused.status in (404, 409):  # gone, or another one by now
                return False
            raise
        return True

    def may(self, verb: str, resource: str) -> bool:
        """Whether we may do something to objects of this namespace; True where nobody can tell."""
        name, _, part = resource.partition("/")
        group = _API.get(name, "api/v1").removeprefix("apis/").rpartition("/")[0]
        asked = {
            "namespace": "" if name in _CLUSTER_WIDE else self.namespace,
            "verb": verb,
            "resource": name,
            "group": "" if group == "api" else group,
        }
        if part:
            asked["subresource"] = part
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": asked}}
        try:
            answer = self._json("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review)
        except Refused:
            return True
        return bool(answer.get("status", {}).get("allowed", True))

    def objects(self, resource: str, **selectors: str) -> Objects:
        """A set of objects to be watched (`components.watching.Source`)."""
        return Objects(self, resource, selectors)

    def log(self, pod: str, container: str) -> Log:
        """The log of a container (`components.podlogs.LogSource`)."""
        return Log(self, pod, container)

    def log_end(self, pod: str, container: str, lines: int = 2000, previous: bool = False) -> str:
        """The last lines of a log; nothing if there is none."""
        query = {"container": container, "tailLines": str(lines), "limitBytes": str(2**20), "previous": str(previous).lower()}
        with suppress(Refused, Interrupted):
            return self._again(lambda: self._send("GET", self._path("pods", pod, "log"), query).data).decode(errors="replace")
        return ""

    @staticmethod
    def quantity(text: str | int | float) -> Decimal:
        """An amount as Kubernetes writes it: 500m, 2Gi, 8."""
        from kubernetes.utils import parse_quantity

        return parse_quantity(text)

    def _path(self, resource: str, *rest: str) -> str:
        prefix = self._kueue() if "kueue" in _API.get(resource, "") else _API.get(resource, "api/v1")
        middle = [] if resource in _CLUSTER_WIDE else ["namespaces", self.namespace]
        return "/" + "/".join([prefix, *middle, resource, *rest])

    def _kueue(self) -> str:
        """The API of the Kueue that is installed: its first versions call it v1beta1."""
        if self._kueue_api is None:
            try:
                preferred = self._json("GET", "/apis/kueue.x-k8s.io")["preferredVersion"]["groupVersion"]
            except (Refused, KeyError):
                preferred = "kueue.x-k8s.io/v1beta2"
            self._kueue_api = f"apis/{preferred}"
        return self._kueue_api

    def _json(self, method: str, path: str, query: Mapping[str, str] | None = None, body: Json | None = None, kind: str = "") -> Json:
        return json.loads(self._again(lambda: self._send(method, path, query, body, kind).data))

    def _version(self) -> bytes:
        try:
            return self._send("GET", "/version").data
        except Refused as refused:
            if refused.status != 403:
                raise
            # everybody may ask for this, once the server knows its roles
            raise Interrupted(f"HTTP 403: {refused.message}") from None

    def _again(self, call: Any) -> Any:
        """Call until it is not interrupted any more, for as long as our patience lasts."""
        jitter = wait_random_exponential(multiplier=PAUSE_S, max=LONGEST_PAUSE_S)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked_s = error.after_s if isinstance(error, Interrupted) else None
            return asked_s if asked_s is not None else jitter(state)

        def said(state: RetryCallState) -> None:
            emit("cluster_unreachable", why=str(state.outcome.exception() if state.outcome else ""), tried=state.attempt_number)

        retrying = Retrying(
            retry=retry_if_exception_type(Interrupted), wait=wait, stop=stop_after_delay(self._patience_s), before_sleep=said, reraise=True
        )
        return retrying(call)

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        kind: str = "",
        read_s: float = _READ_S,
        accept: str = "application/json",
    ) -> Any:
        """The response, its body not yet read.

        Raises:
            Interrupted: if the server can't be reached or has no time, or does not know any more what we may.
            Expired: 410.
            Refused: any other status that is not of success.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        right = _right(method, path, query or {})
        try:
            response = self._api.call_api(
                path,
                method,
                query_params=list((query or {}).items()),
                header_params={"Accept": accept, "Content-Type": kind or "application/json"},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=(_CONNECT_S, read_s),
            )
        except ApiException as error:
            raise self._believed(right, _meaning(error)) from None
        except (HTTPError, OSError) as error:
            raise Interrupted(f"{method} {path}: {type(error).__name__}: {error}") from None
        self._refused_since[right] = None
        return response

    def _believed(self, right: Any, said: Exception) -> Exception:
        """What the server said, if it is not taken back in a moment."""
        if not isinstance(said, Refused) or said.status not in (401, 403) or right not in self._refused_since:
            return said
        now = time.monotonic()
        since = self._refused_since[right] = self._refused_since[right] or now
        return said if now - since > _ROLES_S else Interrupted(f"HTTP {said.status}: {said.message}")


@dataclass(frozen=True)
class Objects:
    """The objects of a kind in the namespace that fit the selectors."""

    cluster: Cluster
    resource: str
    selectors: Mapping[str, str]

    def list(self) -> tuple[list[Json], str]:
        """All of them, and the resource version of the list."""
        found = self.cluster._send("GET", self.cluster._path(self.resource), self.selectors)
        items = json.loads(_body(found))
        kind = items.get("kind", "").removesuffix("List")
        # items of a list of a built-in kind don't say what they are
        return [{"kind": kind, **item} for item in items["items"]], items["metadata"]["resourceVersion"]

    def watch(self, version: str) -> Iterator[Json]:
        """Watch events, until the server ends it."""
        query = {
            **self.selectors,
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_S),
        }
        response = self.cluster._send("GET", self.cluster._path(self.resource), query)
        for line, whole in _lines(response):
            if not whole:
                return  # cut: it comes again
            event = json.loads(line)
            if event["type"] == "ERROR":
                status = event["object"]
                if status.get("code") == 410:
                    raise Expired
                raise Interrupted(status.get("message", "the watch broke"))
            yield event


@dataclass(frozen=True)
class Log:
    """The log of one container."""

    cluster: Cluster
    pod: str
    container: str

    def lines(self, since: str | None, previous: bool, follow: bool) -> Iterator[str]:
        """Whole lines with their time stamps; see `components.podlogs.LogSource`."""
        query = {
            "container": self.container,
            "timestamps": "true",
            "follow": str(follow).lower(),
            "previous": str(previous).lower(),
            **({"sinceTime": since} if since else {}),
        }
        try:
            response = self.cluster._send("GET", self.cluster._path("pods", self.pod, "log"), query)
            for line, whole in _lines(response):
                if whole or not follow:
                    yield line.decode(errors="replace")
        except Refused as refused:
            if refused.status == 404:
                raise Gone from None
            if refused.status == 400:
                if previous:
                    return  # the container before left no log
                raise Waiting(refused.message) from None
            raise


def _lines(response: Any) -> Iterator[tuple[bytes, bool]]:
    """Lines of a stream as they come, and whether they are whole. A silence of `_READ_S` ends it, as its end does.

    Raises:
        Interrupted: if the connection broke.
    """
    from urllib3.exceptions import HTTPError, ReadTimeoutError

    rest = b""
    try:
        for chunk in response.stream(amt=None):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line:
                    yield line, True
    except ReadTimeoutError:
        return
    except (HTTPError, OSError) as error:
        raise Interrupted(f"{type(error).__name__}: {error}") from None
    finally:
        response.close()
        response.release_conn()
    if rest:
        yield rest, False


def _right(method: str, path: str, query: Mapping[str, str]) -> tuple[Any, ...]:
    """What has to be allowed for a request: the verb and the kind of object, whichever of its names is asked for."""
    parts = path.rpartition("/namespaces/")[2].split("/")  # namespace, resource, name, subresource
    return method, "watch" in query, len(parts), *parts[1:2], *parts[3:]


def _body(response: Any) -> bytes:
    from urllib3.exceptions import HTTPError

    try:
        return response.data
    except (HTTPError, OSError) as error:
        raise Interrupted(f"{type(error).__name__}: {error}") from None


def _meaning(error: Any) -> Exception:
    """What an HTTP status means to us."""
    try:
        told = json.loads(error.body)
        reason, message = str(told.get("reason", error.reason)), str(told.get("message", error.reason))
    except (TypeError, ValueError, AttributeError):
        reason, message = str(error.reason), str(error.body or error.reason)
    if error.status == 410:
        return Expired()
    if error.status == 429 or error.status >= 500:
        asked = (error.headers or {}).get("Retry-After", "")
        return Interrupted(f"HTTP {error.status}: {message}", float(asked) if asked.isdigit() else None)
    return Refused(error.status, reason, message)
