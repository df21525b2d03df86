"""Fixtures: an S3 server in a process of its own, and buckets on it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@contextmanager
def s3_process(*options: str) -> Iterator[int]:
    """The port of an S3 server in a process of its own (see s3_process.py)."""
    command = [sys.executable, str(Path(__file__).parent / "s3_process.py"), *options]
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stdout
            yield int(process.stdout.readline())
        finally:
            process.kill()


def only(monkeypatch: pytest.MonkeyPatch, env: Mapping[str, str]) -> None:
    """Make `env` all there is of AWS's variables."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[dict[str, Any]]:
    """A running S3 server: its `endpoint`, and the `env` that a process needs to use it."""
    with s3_process() as port:
        endpoint = f"http://127.0.0.1:{port}"
        yield {"endpoint": endpoint, "env": {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": endpoint}}


@pytest.fixture
def s3_bucket(s3_server: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Makes an empty bucket and gives its URI; this process's environment then points at the server."""
    import boto3

    only(monkeypatch, s3_server["env"])

    def make(kind: str = "test") -> str:
        bucket = f"{kind}-{uuid.uuid4().hex[:12]}"
        boto3.client("s3").create_bucket(Bucket=bucket)
        return f"s3://{bucket}"

    return make
