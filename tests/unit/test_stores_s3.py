"""What only S3 can do, or get wrong: against a server process, with real faults."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import socket
import subprocess
import sys
import urllib.request
import warnings

import boto3
import pytest
from s3_server import CREDENTIALS, only, s3_process

from trainer.errors import StoreError
from trainer.results import write_manifest
from trainer.stores import open_store, s3
from trainer.stores.s3 import S3Store


def fault(attempt) -> str:
    with pytest.raises(StoreError) as caught:
        attempt()
    assert len(caught.value.faults) == 1
    return str(caught.value)


def attempts(store, tmp_path):
    (tmp_path / "up").mkdir(exist_ok=True)
    (tmp_path / "up" / "f").write_bytes(b"x")
    return {
        "exists": lambda: store.exists("k"),
        "read": lambda: store.read("k"),
        "write": lambda: store.write("k", b""),
        "swap": lambda: store.swap("k", b"", None),
        "version": lambda: store.version("k"),
        "list": lambda: [*store.list()],
        "delete": lambda: store.delete("k"),
        "upload": lambda: store.upload(tmp_path / "up", "r"),
        "download": lambda: store.download("r", tmp_path / "down"),
        "probe": lambda: store.probe(),
    }


METHODS = ["exists", "read", "write", "swap", "version", "list", "delete", "upload", "download", "probe"]


@pytest.mark.parametrize("uri", ["s3://", "s3:///prefix", "s3://b", "s3://Bucket name/x", "s3://bucket/a/../b", "s3://bucket/a//b"])
def test_a_uri_that_names_no_bucket_or_leads_elsewhere_is_refused(uri):
    assert "s3://" in fault(lambda: open_store(uri))


def test_opening_a_store_reaches_for_no_server(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    assert open_store("s3://bucket/a/b/").uri == "s3://bucket/a/b"


@pytest.mark.parametrize("method", METHODS)
def test_a_missing_bucket_is_named_by_every_method(s3_bucket, tmp_path, method):
    s3_bucket()
    said = fault(attempts(open_store("s3://no-such-bucket-here/p"), tmp_path)[method])
    assert "s3://no-such-bucket-here/p" in said and "NoSuchBucket" in said and "fix: create the bucket" in said


@pytest.mark.parametrize("method", METHODS)
def test_a_closed_port_is_named_by_every_method(s3_bucket, tmp_path, monkeypatch, method):
    s3_bucket()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", closed)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    said = fault(attempts(open_store("s3://bucket/p"), tmp_path)[method])
    assert said.startswith("s3://bucket/p") and closed in said and "AWS_ENDPOINT_URL_S3" in said


@pytest.mark.parametrize(
    ("env", "finding", "remedy"),
    [
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "Unable to locate credentials", "AWS_ACCESS_KEY_ID"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "Partial credentials", "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_PROFILE": "nobody"}, "nobody", "set AWS_PROFILE"),
        ({"AWS_ENDPOINT_URL_S3": "localhost:9000"}, "localhost:9000", "AWS_ENDPOINT_URL_S3"),
    ],
)
def test_what_a_client_lacks_is_said_with_its_cure(s3_bucket, monkeypatch, env, finding, remedy):
    s3_bucket()
    for name, value in env.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    said = fault(lambda: open_store("s3://bucket/p").read("k"))
    assert finding in said and remedy in said.partition("fix:")[2]


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_an_endpoint_is_addressed_by_path_unless_configured_otherwise(s3_bucket, s3_server, monkeypatch, tmp_path, name):
    s3_bucket()
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv(name, "http://store.example:9000")
    url = lambda: S3Store("s3://bucket/p")._client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "k"})  # noqa: E731
    assert url().startswith("http://store.example:9000/bucket/k?")
    (tmp_path / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert url().startswith("http://bucket.store.example:9000/k?")


def test_no_checksum_is_sent_that_older_servers_refuse(s3_bucket):
    store, sent = open_store(s3_bucket()), []
    store._client.meta.events.register("before-send.s3", lambda request, **_: sent.append({name.lower() for name in request.headers}))
    store.write("k", b"x")
    store.read("k")
    store.delete("k")
    assert len(sent) >= 3
    assert not [name for names in sent for name in names if name.startswith(("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer"))]


def test_a_server_without_conditional_writes_is_said_so_once_and_still_swaps(s3_bucket, monkeypatch):
    monkeypatch.setattr(s3, "_unconditional", set())
    store = open_store(s3_bucket("refuses"))
    with pytest.warns(UserWarning, match="does not implement conditional writes"):
        assert store.swap("k", b"one", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not store.swap("k", b"two", None)
        assert store.swap("k", b"two", store.version("k"))
    assert store.read("k") == b"two"
    assert "not implemented" in store.probe() and [*store.list()] == ["k"]


def test_a_server_that_ignores_conditions_is_found_out_by_the_probe(s3_bucket):
    store = open_store(s3_bucket("ignores"))
    assert store.swap("k", b"one", None) and not store.swap("k", b"two", None)
    assert "ignored" in store.probe()
    assert "honoured" in open_store(s3_bucket()).probe()


def test_an_answer_that_is_cut_off_is_asked_for_again(s3_bucket, tmp_path):
    store, data = open_store(s3_bucket("cuts")), os.urandom(300_000)
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "f").write_bytes(data)
    write_manifest(tmp_path / "up", "test", "key")
    store.upload(tmp_path / "up", "r")
    assert store.read("r/f") == data and store.read("r/f") == data
    store.download("r", tmp_path / "down")
    assert sorted(os.listdir(tmp_path / "down")) == ["f", "manifest.json"]
    assert (tmp_path / "down" / "f").read_bytes() == data


def test_a_download_that_breaks_off_leaves_no_file_that_looks_whole(s3_bucket, tmp_path):
    store = open_store(s3_bucket("breaks"))
    store.write("r/f", bytes(300_000))
    said = fault(lambda: store.download("r", tmp_path / "down"))
    assert said.startswith(f"{store.uri}/r: ") and "try again" in said
    assert os.listdir(tmp_path / "down") == []


@pytest.fixture
def result(s3_bucket, tmp_path):
    """A store with a sealed result of two files below `r`, and the local folder it came from."""
    folder = tmp_path / "up"
    folder.mkdir()
    (folder / "a").write_bytes(b"a" * 5000)
    (folder / "b").write_bytes(b"b" * 5000)
    write_manifest(folder, "test", "key")
    store = open_store(s3_bucket())
    store.upload(folder, "r")
    return store, folder


def fetched(store) -> list[str]:
    keys: list[str] = []
    store._client.meta.events.register("provide-client-params.s3.GetObject", lambda params, **_: keys.append(params["Key"]))
    return keys


def test_only_files_that_are_not_right_yet_are_fetched(result, tmp_path):
    store, _ = result
    store.download("r", tmp_path / "down")
    (tmp_path / "down" / "b").write_bytes(b"x" * 5000)  # the right size, the wrong bytes
    keys = fetched(store)
    store.download("r", tmp_path / "down")
    assert "r/b" in keys and "r/a" not in keys
    assert (tmp_path / "down" / "b").read_bytes() == b"b" * 5000


def test_a_file_that_is_not_what_its_manifest_says_is_refused(result, tmp_path):
    store, _ = result
    store.write("r/b", b"c" * 5000)
    said = fault(lambda: store.download("r", tmp_path / "down"))
    assert f"{store.uri}/r/b: has SHA-256" in said
    assert not (tmp_path / "down" / "b").exists() and not (tmp_path / "down" / "manifest.json").exists()


def test_a_file_that_its_manifest_misses_is_named(result, tmp_path):
    store, _ = result
    store.delete("r/b")
    assert "lacks b of its manifest" in fault(lambda: store.download("r", tmp_path / "down"))


@pytest.mark.parametrize("text", [b"not json", b"[]", b'{"files": []}', b'{"files": {"a": 1}}'])
def test_a_manifest_that_is_none_is_named(result, tmp_path, text):
    store, _ = result
    store.write("r/manifest.json", text)
    assert f"{store.uri}/r/manifest.json: is not a manifest" in fault(lambda: store.download("r", tmp_path / "down"))


def test_keys_made_by_others_cannot_leave_the_folder_they_are_downloaded_to(result, tmp_path):
    store, _ = result
    store._client.put_object(Bucket=store.bucket, Key="r/folder-of-a-console/", Body=b"")
    store.download("r", tmp_path / "down")
    assert sorted(os.listdir(tmp_path / "down")) == ["a", "b", "manifest.json"]
    store._client.put_object(Bucket=store.bucket, Key="r/../../evil", Body=b"evil")
    assert "key" in fault(lambda: store.download("r", tmp_path / "down"))
    assert not [*tmp_path.rglob("evil")]


def test_a_download_to_a_folder_that_cannot_be_made_is_named(result, tmp_path):
    store, _ = result
    (tmp_path / "file").write_text("kept")
    assert str(tmp_path / "file") in fault(lambda: store.download("r", tmp_path / "file" / "below"))


def test_a_large_file_goes_up_in_parts_and_comes_down_whole(s3_bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(s3, "MULTIPART_BYTES", 6 << 20)
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    store, parts = open_store(s3_bucket()), []
    store._client.meta.events.register("provide-client-params.s3.UploadPart", lambda params, **_: parts.append(params["PartNumber"]))
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "f").write_bytes(os.urandom(11 << 20))
    store.upload(tmp_path / "up", "r")
    assert sorted(parts) == [1, 2, 3]
    store.download("r", tmp_path / "down")
    assert (tmp_path / "down" / "f").read_bytes() == (tmp_path / "up" / "f").read_bytes()


CUT_SHORT = """
import os, sys
from trainer.stores import open_store, s3
s3.MULTIPART_BYTES, s3.PART_BYTES = 6 << 20, 5 << 20
store = open_store(sys.argv[1])
def die(params, **_):
    if params["PartNumber"] == 3:
        os._exit(9)
store._client.meta.events.register("provide-client-params.s3.UploadPart", die)
store.upload(sys.argv[2], "r")
"""


def test_a_process_killed_among_the_parts_of_a_file_leaves_no_file(s3_bucket, tmp_path):
    store = open_store(s3_bucket())
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "f").write_bytes(os.urandom(11 << 20))
    assert subprocess.run([sys.executable, "-c", CUT_SHORT, store.uri, str(tmp_path / "up")]).returncode == 9
    assert not store.exists("r/f") and [*store.list()] == []


def certificate(folder):
    """A self-signed certificate for 127.0.0.1 and its key, as files."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "store.test")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(folder / "cert.pem"), str(folder / "key.pem")


def test_a_private_authority_is_trusted_by_its_bundle_alone(tmp_path, monkeypatch):
    cert, key = certificate(tmp_path)
    with s3_process("--certificate", cert, "--key", key) as port:
        only(monkeypatch, {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": f"https://127.0.0.1:{port}", "AWS_MAX_ATTEMPTS": "1"})
        said = fault(lambda: open_store("s3://bucket/p").read("k"))
        assert "SSL validation failed" in said and "fix: set AWS_CA_BUNDLE" in said
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "absent.pem"))
        assert "absent.pem" in fault(lambda: open_store("s3://bucket/p").read("k"))
        monkeypatch.setenv("AWS_CA_BUNDLE", cert)
        boto3.client("s3").create_bucket(Bucket="bucket")
        assert "honoured" in open_store("s3://bucket/p").probe()


@pytest.fixture(scope="module")
def guarded():
    """A server of its own that checks credentials: its environment, with a user who may only read."""
    with s3_process() as port:
        endpoint = f"http://127.0.0.1:{port}"
        made = {"endpoint_url": endpoint, "region_name": "us-east-1", "aws_access_key_id": "admin", "aws_secret_access_key": "admin"}
        boto3.client("s3", **made).create_bucket(Bucket="bucket")
        iam = boto3.client("iam", **made)
        iam.create_user(UserName="reader")
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["s3:Get*", "s3:List*"], "Resource": "*"}]}
        iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=json.dumps(policy))
        keys = iam.create_access_key(UserName="reader")["AccessKey"]
        from_now_on = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
        urllib.request.urlopen(from_now_on).close()
        user = {"AWS_ACCESS_KEY_ID": keys["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"]}
        yield {**CREDENTIALS, **user, "AWS_ENDPOINT_URL_S3": endpoint}


@pytest.mark.parametrize(
    ("env", "word", "remedy"),
    [
        ({"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN000000000"}, "InvalidAccessKeyId", "set AWS_ACCESS_KEY_ID"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch", "set AWS_ACCESS_KEY_ID"),
        ({}, "AccessDenied", "let these credentials list, read, write"),
    ],
)
def test_what_a_server_refuses_is_said_in_its_word_with_a_cure(guarded, monkeypatch, env, word, remedy):
    only(monkeypatch, {**guarded, **env})
    said = fault(lambda: open_store("s3://bucket/p").write("k", b""))
    assert said.startswith("s3://bucket/p/k: PutObject: ") and word in said and remedy in said.partition("fix:")[2]
    assert guarded["AWS_SECRET_ACCESS_KEY"] not in said
    assert remedy in fault(lambda: open_store("s3://bucket/p").probe())


def test_a_client_is_made_once(s3_bucket):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        uri = s3_bucket()
        assert open_store(uri)._client is open_store(uri + "/other")._client
