"""How pods get into the store: by a Secret and ConfigMaps of these names (k8s/components/s3), which are only ever named."""

from __future__ import annotations

STORE = "cotrain-store"
"""The Secret with the credentials, and the ConfigMap with the address."""
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
ADDRESS = ("AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE")
CA_FOLDER = "/etc/cotrain/ca"
"""Where the certificate authority is, of the ConfigMap with `-ca` after its name."""


def credentials_from(namespace: str, secret: str = STORE) -> str:
    """Where a pod has its credentials from, for whoever has to put them right (`trainer.stores.s3_faults.CREDENTIALS_FROM`)."""
    return f"the Secret {secret}; see: kubectl get secret {secret} -n {namespace}"
