"""Where training is launched: what belongs to the platform rather than to the document."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from trainer.errors import LaunchError, one_of

Json = dict[str, Any]
Launcher = Literal["local", "trainjob", "job"]
LAUNCHERS = ("local", "trainjob", "job")
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_STORE_SETTINGS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_MAX_ATTEMPTS")


@dataclass(frozen=True)
class Owner:
    """The pod that launches: what it launched goes when it is deleted."""

    name: str
    uid: str


@dataclass(frozen=True)
class Target:
    """A place on a cluster, and on whose behalf. Raw Kubernetes fields are as a pod has them, in JSON."""

    root: str
    """Where results are kept; every pod has to reach it."""
    namespace: str = "default"
    image: str | None = None
    """Image of the training pods. None: the runtime's own; `job` has no runtime and needs it."""
    runtime: str = "cotrain"
    """The TrainingRuntime, by name: k8s/base has it."""
    run_id: str | None = None
    """The pipeline run, or whatever else is to be found by it."""
    owner: Owner | None = None
    service_account: str = "cotrain-training"
    store_secret: str | None = None
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. None: the optional one named cotrain-store."""
    ca_config_map: str | None = None
    """ConfigMap whose `ca.crt` is the certificate authority of the store."""
    gpu_resource: str = "nvidia.com/gpu"
    env: tuple[Json, ...] = ()
    volumes: tuple[Json, ...] = ()
    volume_mounts: tuple[Json, ...] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Json, ...] = ()
    affinity: Json | None = None
    resources: Json | None = None
    """Requests and limits of a pod, over those that the document asks for."""
    image_pull_secrets: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, root: str, environ: Mapping[str, str] | None = None, **given: Any) -> Target:
        """The target that the environment describes; `given` goes over it where it is not None.

        COTRAIN_NAMESPACE, COTRAIN_IMAGE, COTRAIN_RUNTIME, COTRAIN_RUN_ID, COTRAIN_SERVICE_ACCOUNT, COTRAIN_STORE_SECRET,
        COTRAIN_CA_CONFIG_MAP, COTRAIN_GPU_RESOURCE; COTRAIN_POD_NAME and COTRAIN_POD_UID for the owner; COTRAIN_POD, JSON or
        YAML, for what every training pod gets besides: env, volumes, volumeMounts, nodeSelector, tolerations, affinity,
        resources, imagePullSecrets. Addresses of the store (AWS_ENDPOINT_URL_S3, AWS_DEFAULT_REGION...) are passed on.

        Raises:
            LaunchError: if COTRAIN_POD is not such a mapping.
        """
        found = os.environ if environ is None else environ
        values: Json = {
            "namespace": found.get("COTRAIN_NAMESPACE") or _own_namespace(),
            **{
                name: found.get(f"COTRAIN_{name.upper()}")
                for name in ("image", "runtime", "run_id", "service_account", "store_secret", "ca_config_map", "gpu_resource")
            },
        }
        pod = {"name": found.get("COTRAIN_POD_NAME"), "uid": found.get("COTRAIN_POD_UID")}
        if pod["name"] and pod["uid"]:
            values["owner"] = Owner(pod["name"], pod["uid"])
        values |= _pod_fields(found.get("COTRAIN_POD"))
        settings = tuple({"name": name, "value": found[name]} for name in _STORE_SETTINGS if found.get(name))
        values["env"] = settings + tuple(values.get("env", ()))
        values |= {name: value for name, value in given.items() if value is not None}
        return cls(root, **{name: value for name, value in values.items() if value is not None})

    def with_(self, **changes: Any) -> Target:
        """A copy with some fields changed."""
        return replace(self, **changes)


def launcher_of(cluster: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Launcher:
    """Who launches: the document's `cluster.launcher`, else COTRAIN_LAUNCHER, else local."""
    found = cluster.get("launcher") or (os.environ if environ is None else environ).get("COTRAIN_LAUNCHER") or "local"
    if found not in LAUNCHERS:
        raise LaunchError.at("COTRAIN_LAUNCHER", f"no launcher is called '{found}'", one_of(found, LAUNCHERS))
    return found  # type: ignore[return-value]


def named(image: str, place: str = "COTRAIN_IMAGE") -> str:
    """The name of an image, if it can be one.

    Raises:
        LaunchError: no registry could have an image of that name.
    """
    if not _NAME.fullmatch(image):
        remedy = "write registry.example.com/cotrain:TAG, or better registry.example.com/cotrain@sha256:DIGEST with its 64 digits"
        raise LaunchError.at(place, f"'{image}' can't be the name of an image", remedy)
    return image


_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[A-Fa-f0-9:]+\])(?::[0-9]+)?/"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
# as https://github.com/distribution/reference has it
_NAME = re.compile(rf"(?:{_HOST})?{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?")


def _own_namespace() -> str | None:
    return _NAMESPACE_FILE.read_text().strip() if _NAMESPACE_FILE.is_file() else None


_POD = {
    "env": "env",
    "volumes": "volumes",
    "volumeMounts": "volume_mounts",
    "nodeSelector": "node_selector",
    "tolerations": "tolerations",
    "affinity": "affinity",
    "resources": "resources",
    "imagePullSecrets": "image_pull_secrets",
}


def _pod_fields(text: str | None) -> Json:
    if not text:
        return {}
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise LaunchError.at("COTRAIN_POD", f"is neither JSON nor YAML: {error}", "write a mapping such as {nodeSelector: {...}}") from None
    if not isinstance(raw, dict):
        raise LaunchError.at("COTRAIN_POD", f"is a {type(raw).__name__}, not a mapping", "write a mapping such as {nodeSelector: {...}}")
    for name in raw:
        if name not in _POD:
            raise LaunchError.at("COTRAIN_POD", f"no field '{name}' goes to every training pod", one_of(name, _POD))
    fields: Json = {_POD[name]: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
    if "image_pull_secrets" in fields:
        fields["image_pull_secrets"] = tuple(e["name"] if isinstance(e, dict) else e for e in fields["image_pull_secrets"])
    return fields
