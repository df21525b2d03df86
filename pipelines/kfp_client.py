"""A Kubeflow Pipelines server, standalone or with several users, behind the few questions that the commands have.

Everything goes through `kfp.Client`; what it raises becomes an error that says what was found and what to do.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.kfp_faults import told
from trainer.errors import LaunchError

PIPELINE = "cotrain"
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
PARAMETER_CHARS = 10_000
"""What a server takes as the parameters of a run, all of them together, as JSON."""
_IN_CLUSTER = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
_TOKEN_FILE = "/var/run/secrets/kubeflow/pipelines/token"
_TIMEOUT_S = 60
_PAGE = 100
_EQUALS = 1


@dataclass(frozen=True)
class Access:
    """Where the server is, and who asks."""

    endpoint: str
    namespace: str | None = None
    """Whose runs, where the server has several users; None where it has one."""
    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    """Read anew for every request: such tokens are short-lived."""
    cookie: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    ui: str | None = None
    """Where people look at runs, if that is another address."""

    @classmethod
    def found(cls, endpoint: str | None, **given: Any) -> Access:
        """Access as the options say, else the environment, else what a pod is given.

        Raises:
            LaunchError: no server is known, or a file that was named is not there.
        """
        inside = "KUBERNETES_SERVICE_HOST" in os.environ
        endpoint = endpoint or os.environ.get("KF_PIPELINES_ENDPOINT") or (_IN_CLUSTER if inside else None)
        if not endpoint:
            raise LaunchError.at("--kfp", "no Kubeflow Pipelines server is known", "give its address: --kfp URL, or set KFP_ENDPOINT")
        if not endpoint.startswith(("http://", "https://")):
            raise LaunchError.at("--kfp", f"'{endpoint}' is no URL", "write http:// or https:// before the address")
        token_file = given.pop("token_file", None) or os.environ.get("KF_PIPELINES_SA_TOKEN_PATH")
        if not token_file and not given.get("token") and Path(_TOKEN_FILE).is_file():
            token_file = _TOKEN_FILE
        for option, file in (("--token-file", token_file), ("--ca-file", given.get("ca_file"))):
            if file and not os.access(file, os.R_OK):
                raise LaunchError.at(option, f"there is no readable file {file}", "correct the path")
        ui = os.environ.get("KF_PIPELINES_UI_ENDPOINT")
        return cls(endpoint.rstrip("/"), token_file=token_file, ui=ui.rstrip("/") if ui else None, **given)


class Kfp:
    """A server that answered."""

    def __init__(self, access: Access) -> None:
        """Reach the server.

        Raises:
            LaunchError: it can't be reached, doesn't let one in, is no such server, or asks whose runs are meant.
        """
        self.access = access
        self._client, self._api = _client(access)
        with self._told("reach it"):
            health = self._client.healthz_api.healthz_service_get_healthz()
        if getattr(health, "multi_user", None) is None:
            found = "answers with something else than Kubeflow Pipelines, such as a page to log in"
            raise LaunchError.at(access.endpoint, found, "give the address of the API, and a token (--token-file, or KFP_TOKEN)")
        if health.multi_user and not access.namespace:
            found = "serves several users and was not told whose runs are meant"
            raise LaunchError.at(access.endpoint, found, "give the namespace of the profile: --namespace NAME, or set KFP_NAMESPACE")
        self.namespace = access.namespace if health.multi_user else None

    def version(self, text: str, name: str) -> tuple[str, str, bool]:
        """Ids of the pipeline and of its version with this name, and whether the text was uploaded for it just now."""
        with self._told("upload the pipeline"):
            pipeline = self._pipeline() or self._new_pipeline()
            versions = self._pages(
                lambda **page: self._client.list_pipeline_versions(pipeline, filter=_equals("display_name", name), **page),
                "pipeline_versions",
            )
            found = next(iter(versions), None)
            if found:
                return pipeline, found.pipeline_version_id, False
            with tempfile.TemporaryDirectory(prefix="cotrain-upload-") as scratch:
                file = Path(scratch) / "cotrain.yaml"
                file.write_text(text)
                made = self._client.upload_pipeline_version(str(file), name, pipeline_id=pipeline)
            return pipeline, made.pipeline_version_id, True

    def experiment(self, name: str) -> str:
        """Id of the experiment with this name; made if there is none."""
        with self._told(f"open experiment '{name}'"):
            return str(self._client.create_experiment(name, namespace=self.namespace).experiment_id)

    def start(
        self, experiment: str, name: str, pipeline: str, version: str, parameters: dict[str, Any], service_account: str | None
    ) -> str:
        """Id of a run that was started."""
        with self._told("start a run"):
            made = self._client.run_pipeline(
                experiment, name, params=parameters, pipeline_id=pipeline, version_id=version, service_account=service_account
            )
            return str(made.run_id)

    def run(self, run: str) -> Any:
        """A run, with the state of its steps.

        Raises:
            UserError: there is none.
        """
        with self._told(f"find run {run}"):
            return self._client.get_run(run)

    def named(self, name: str, experiment: str) -> list[Any]:
        """Runs of an experiment with this name, the newest first."""
        with self._told("list runs"):
            return list(
                self._pages(
                    lambda **page: self._client.list_runs(
                        experiment_id=experiment, filter=_equals("display_name", name), sort_by="created_at desc", **page
                    ),
                    "runs",
                )
            )

    def newest(self, experiment: str) -> list[Any]:
        """The newest runs of an experiment, a page of them."""
        with self._told("list runs"):
            found = self._client.list_runs(
                experiment_id=self._client.create_experiment(experiment, namespace=self.namespace).experiment_id,
                sort_by="created_at desc",
                page_size=20,
            )
            return list(found.runs or ())

    def terminate(self, run: str) -> None:
        """Ask a run to end."""
        with self._told(f"end run {run}"):
            self._client.terminate_run(run)

    def wait(self, run: str, timeout_s: float | None, seen: Callable[[Any], None], poll_s: float = 5.0, patience_s: float = 600.0) -> Any:
        """The run once it has ended. A server that is away for a while is waited for.

        Raises:
            LaunchError: it took longer than `timeout_s`, or the server was away for longer than `patience_s`.
        """
        started = answered = time.monotonic()
        while True:
            try:
                now = self.run(run)
                answered = time.monotonic()
                seen(now)
                if str(now.state).upper() in ENDED:
                    return now
            except LaunchError:  # not let in, no such run and the like are other errors, and not waited for
                if time.monotonic() - answered > patience_s:
                    raise
            if timeout_s is not None and time.monotonic() - started > timeout_s:
                raise LaunchError.at(run, f"has not ended after {timeout_s:g} s; it goes on", f"wait for it: cotrain status {run} --wait")
            time.sleep(poll_s)

    def log(self, run: str, pod: str) -> str:
        """What a pod of a run has said so far; empty where nothing is kept of it."""
        import kfp_server_api

        with self._told(f"read the log of {pod}"):
            try:
                answer = self._api.call_api(
                    "/apis/v1alpha1/runs/{run}/nodes/{pod}/log", "GET", {"run": run, "pod": pod},
                    auth_settings=["Bearer"], _preload_content=False, _return_http_data_only=True,
                )  # fmt: skip
            except kfp_server_api.ApiException as error:
                if error.status in (404, 500):  # the pod is gone, or has not started
                    return ""
                raise
            return str(answer.data.decode(errors="replace"))

    def schedule(self, experiment: str, name: str, pipeline: str, version: str, **how: Any) -> str:
        """Id of a schedule that was made; `how` is as `kfp.Client.create_recurring_run` takes it."""
        with self._told(f"make schedule '{name}'"):
            made = self._client.create_recurring_run(experiment, name, pipeline_id=pipeline, version_id=version, **how)
            return str(made.recurring_run_id)

    def schedules(self) -> list[Any]:
        """Every schedule that is of this pipeline, or can't be told from one."""
        with self._told("list schedules"):
            pipeline = self._pipeline()
            found = self._pages(
                lambda **page: self._client.list_recurring_runs(namespace=self.namespace, sort_by="created_at desc", **page),
                "recurring_runs",
            )
            return [one for one in found if pipeline is not None and one.pipeline_version_reference.pipeline_id == pipeline]

    def switch(self, schedule: str, on: bool) -> None:
        """Let a schedule go on, or pause it."""
        with self._told(f"switch schedule {schedule}"):
            (self._client.enable_recurring_run if on else self._client.disable_recurring_run)(schedule)

    def unschedule(self, schedule: str) -> None:
        """Delete a schedule; runs that it started go on."""
        with self._told(f"delete schedule {schedule}"):
            self._client.delete_recurring_run(schedule)

    def url(self, run: str) -> str:
        """Where a person looks at a run."""
        base = self.access.ui or self.access.endpoint
        return f"{base}/#/runs/details/{run}" + (f"?ns={self.namespace}" if self.namespace else "")

    def _pipeline(self) -> str | None:
        found = self._pages(
            lambda **page: self._client.list_pipelines(namespace=self.namespace, filter=_equals("display_name", PIPELINE), **page),
            "pipelines",
        )
        return next((one.pipeline_id for one in found), None)

    def _new_pipeline(self) -> str:
        import kfp_server_api

        about = "Train jointly and prove, per task, that it paid off."
        wanted = kfp_server_api.V2beta1Pipeline(name=PIPELINE, display_name=PIPELINE, namespace=self.namespace, description=about)
        try:
            return str(self._client.pipelines.pipeline_service_create_pipeline(pipeline=wanted).pipeline_id)
        except kfp_server_api.ApiException as error:
            if error.status != 409:
                raise
            there = self._pipeline()  # made by somebody else in this very moment
            if there is None:
                raise
            return there

    def _pages(self, ask: Callable[..., Any], what: str) -> Iterator[Any]:
        token = ""
        while True:
            answer = ask(page_size=_PAGE, page_token=token)
            yield from getattr(answer, what) or ()
            token = answer.next_page_token or ""
            if not token:
                return

    @contextlib.contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        # the SDK prints links of its own
        with told(self.access.endpoint, self.access.namespace, doing), contextlib.redirect_stdout(io.StringIO()):
            yield


def _client(access: Access) -> tuple[Any, Any]:
    """The SDK's client, and the connection that it uses. Nothing is asked of the server yet."""
    import kfp.client
    import kfp_server_api
    from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials

    credentials = ServiceAccountTokenVolumeCredentials(access.token_file) if access.token_file and not access.token else None
    with warnings.catch_warnings(), told(access.endpoint, access.namespace, "reach it"):
        warnings.simplefilter("ignore", FutureWarning)
        client = kfp.client.Client(
            host=access.endpoint,
            # any name keeps the SDK from asking the server, and from waiting where it is away; ours are given with each call
            namespace=access.namespace or "default",
            existing_token=access.token,
            credentials=credentials,
            cookies=access.cookie,
            ssl_ca_cert=access.ca_file or os.environ.get("SSL_CERT_FILE"),
        )
    client._context_setting = {"namespace": ""}  # and none of what an earlier session left in ~/.config/kfp
    api = client._run_api.api_client
    plain = api.rest_client.request
    api.rest_client.request = lambda *args, **more: plain(*args, **more | {"_request_timeout": more.get("_request_timeout") or _TIMEOUT_S})
    client.healthz_api = kfp_server_api.HealthzServiceApi(api)
    return client, api


def _equals(key: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": _EQUALS, "key": key, "stringValue": value}]})


def fits(parameters: dict[str, Any]) -> bool:
    """Whether a server takes these parameters."""
    return len(json.dumps(parameters)) <= PARAMETER_CHARS
