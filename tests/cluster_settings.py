"""What `make cluster-test` is told, from the environment as it was before the tests took the user's own settings out of it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ASKED = "COTRAIN_CLUSTER_TEST"
"""Set by `make cluster-test`: having a KUBECONFIG is no reason to make things in that cluster."""
_BEFORE = dict(os.environ)


@dataclass(frozen=True)
class Settings:
    """Read as documented in tests/cluster/README.md."""

    image: str
    code: tuple[str, ...]
    """Host folders that are mounted into every pod, and are its PYTHONPATH."""
    root: str | None
    """None: a store of our own, served from this machine."""
    storage: str
    pod_endpoint: str | None
    address: str | None
    namespace: str | None
    wait_s: float
    kubeconfig: str
    aws: Mapping[str, str] = field(repr=False, default_factory=dict)
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:6])

    @classmethod
    def read(cls, environ: Mapping[str, str] = _BEFORE) -> Settings:
        """Unset and empty are the same."""

        def of(name: str) -> str | None:
            return environ.get(f"COTRAIN_TEST_{name}") or None

        home = Path(environ.get("HOME") or Path.home())
        return cls(
            image=of("IMAGE") or "cotrain:dev",
            code=tuple(part for part in (of("CODE") or "").split(":") if part),
            root=of("ROOT"),
            storage=of("STORAGE") or "host",
            pod_endpoint=of("POD_ENDPOINT"),
            address=of("ADDRESS"),
            namespace=of("NAMESPACE"),
            wait_s=float(of("WAIT_S") or 600),
            kubeconfig=environ.get("KUBECONFIG") or str(home / ".kube" / "config"),
            aws={name: value for name, value in environ.items() if name.startswith("AWS_")},
        )


def why_not(environ: Mapping[str, str] = _BEFORE) -> str | None:
    """Why these tests can't run; None if they can."""
    if environ.get(ASKED) != "1":
        return "makes things in a cluster: run `make cluster-test`"
    if not any(Path(file).is_file() for file in Settings.read(environ).kubeconfig.split(os.pathsep)):
        return "there is no cluster: set KUBECONFIG"
    return None
