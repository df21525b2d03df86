"""`cotrain doctor`: what can be reached, and what to do about what can't."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pipelines import health


class Api(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        there = self.path == "/pipeline/apis/v2beta1/healthz"
        self.send_response(200 if there else 404)
        self.end_headers()
        self.wfile.write(b'{"multi_user": false}' if there else b"")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def closed() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def found(name: str, root: str, endpoint: str | None = None) -> tuple[bool, str]:
    ((_, good, said),) = [finding for finding in health.findings(root, endpoint) if finding[0] == name]
    return good, said


def test_everything_of_this_machine_is_named(tmp_path):
    seen = {name: (good, said) for name, good, said in health.findings(str(tmp_path), None)}
    assert list(seen) == ["python", "machine", "torch", "gpu", "deepspeed", "store", "kfp"]
    assert all(good for good, _ in seen.values())
    assert f"{os.cpu_count()} cores" in seen["machine"][1]


def test_a_pipelines_api_that_answers_is_well(tmp_path, api):
    good, said = found("kfp", str(tmp_path), f"{api}/pipeline/")
    assert good
    assert said.endswith("answers")


@pytest.mark.parametrize("tail", ["", "/other"])
def test_a_server_that_is_no_pipelines_api_is_told(tmp_path, api, tail):
    good, said = found("kfp", str(tmp_path), api + tail)
    assert not good
    assert "HTTP 404" in said and "    fix: " in said


def test_a_closed_port_is_told(tmp_path, closed):
    good, said = found("kfp", str(tmp_path), closed)
    assert not good
    assert "refused" in said and closed in said and "    fix: " in said


@pytest.mark.parametrize("address", ["ml-pipeline", "localhost:8888", "http://[::1", "://"])
def test_an_address_that_is_none_is_told(tmp_path, address):
    good, said = found("kfp", str(tmp_path), address)
    assert not good
    assert "    fix: " in said


def test_a_bucket_that_can_be_written_is_well(s3_bucket):
    good, said = found("store", f"{s3_bucket()}/prefix")
    assert good
    assert "writes, reads and deletes" in said


def test_a_store_behind_a_closed_port_is_told(s3_bucket, monkeypatch, closed):
    root = s3_bucket()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", closed)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    good, said = found("store", root)
    assert not good
    assert closed in said and "    fix: " in said


def test_a_folder_that_can_not_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    good, said = found("store", str(tmp_path / "file" / "below"))
    assert not good
    assert "    fix: " in said
