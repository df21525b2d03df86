"""A bucket, or a prefix in one, as a store: `s3://bucket/prefix` on any server that speaks S3.

Endpoint, region, credentials, certificate authority and retries come from where every AWS client looks for them:
AWS_ENDPOINT_URL_S3, AWS_DEFAULT_REGION, AWS_PROFILE, AWS_CA_BUNDLE, AWS_MAX_ATTEMPTS, ~/.aws/config and so on. Where an
endpoint is given, buckets are addressed in the path unless `addressing_style = virtual` is configured.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from trainer.errors import StoreError
from trainer.parts import Store
from trainer.stores.keys import MANIFEST, RESERVED, below, checked, files_below, problem, seals_first, seals_last
from trainer.stores.s3_faults import remedy

T = TypeVar("T")
BLOCK_BYTES = 1 << 20
MULTIPART_BYTES = 64 << 20  # larger files go in parts, so that a broken connection costs one part
PART_BYTES = 32 << 20
_STREAMS = 2  # whole files, one stream each, two at a time: faster than ranges of one file in ten threads
_CUT = (ResponseStreamingError, IncompleteReadError, ReadTimeoutError)
_ABSENT = {"NoSuchKey", "NotFound", "404"}
_unconditional: set[str] = set()  # endpoints that were said to lack conditional writes


class S3Store(Store):
    """Objects below a prefix of a bucket.

    `swap` is a conditional write (`If-None-Match: *`, `If-Match`). Servers that don't implement those get a check and then a
    write, with a warning: two writers that meet within milliseconds can then both believe that they won.
    """

    def __init__(self, uri: str) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self.prefix = prefix.strip("/")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket):
            raise StoreError.at("store", f"'{uri}' names no bucket", "give 's3://bucket/prefix'")
        if self.prefix:
            checked(uri, self.prefix)
        self.bucket = bucket
        self.uri = f"s3://{bucket}/{self.prefix}".rstrip("/")
        self._bucket_seen = False

    def exists(self, key: str) -> bool:
        return self.version(key) is not None

    def read(self, key: str) -> bytes:
        where = self._where(key)
        with self._told(key):
            return _again(lambda: self._client.get_object(**where)["Body"].read())

    def write(self, key: str, data: bytes) -> None:
        where = self._where(key)
        with self._told(key):
            self._client.put_object(**where, Body=data)

    def swap(self, key: str, data: bytes, expect: str | None) -> bool:
        with self._told(key):
            for pause_s in (0.1, 0.2, 0.4, 0.8, None):
                if self.version(key) != expect:  # asked first, for servers that ignore conditions in silence
                    return False
                try:
                    return self._put_if(key, data, expect)
                except ClientError as error:
                    if _status(error) == 409 and pause_s:  # two conditional writes met: neither may have won
                        time.sleep(pause_s)
                        continue
                    if _status(error) != 501 and _code(error) != "NotImplemented":
                        raise
                    self._warn_unconditional()
                    self.write(key, data)
                    return True
            return False

    def version(self, key: str) -> str | None:
        where = self._where(key)
        try:
            with self._told(key):
                return str(self._client.head_object(**where)["ETag"])
        except FileNotFoundError:
            self._need_bucket()
            return None

    def list(self, prefix: str = "") -> Iterator[str]:
        with self._told(prefix):
            keys = [key for key in self._below(prefix) if not problem(key)]
        yield from sorted(keys)

    def delete(self, prefix: str) -> None:
        keys = seals_first([checked(self.uri, prefix), *self.list(prefix)])
        seals = [key for key in keys if key.endswith(f"/{MANIFEST}")]
        with self._told(prefix):
            # one by one: requests to delete many need a checksum that older servers refuse
            _each(lambda key: self._client.delete_object(**self._where(key)), seals, threads=8)
            _each(lambda key: self._client.delete_object(**self._where(key)), keys[len(seals) :], threads=8)

    def upload(self, folder: Any, prefix: str) -> None:
        if prefix:
            checked(self.uri, prefix)
        source = Path(folder)
        names = files_below(self.uri, source)
        seals = [name for name in names if name.rpartition("/")[2] == MANIFEST]
        with self._told(prefix):
            send: Callable[[str], None] = lambda name: self._send(source / name, below(prefix) + name)  # noqa: E731
            _each(send, names[: len(names) - len(seals)], threads=_STREAMS)
            _each(send, seals, threads=1)

    def clock_s(self) -> float | None:
        """As `Store.clock_s`: to the second, which is what the server's `Date` says."""
        with self._told(""):
            try:
                answer = self._client.head_bucket(Bucket=self.bucket)
            except ClientError as error:  # it may not be asked; its answer has the time all the same
                answer = error.response
        said = (answer.get("ResponseMetadata") or {}).get("HTTPHeaders", {}).get("date")
        return parsedate_to_datetime(said).timestamp() - time.time() if said else None

    def fetch(self, key: str, file: Any) -> None:
        """As `Store.fetch`, a block at a time."""
        with self._told(key):
            self._fetch(checked(self.uri, key), Path(file), None)

    def download(self, prefix: str, folder: Any, wanted: Callable[[str], bool] | None = None) -> Path:
        """As `Store.download`. A file gets its name when it is whole and its SHA-256 right; `manifest.json` comes last."""
        target = Path(folder)
        with self._told(prefix):
            keys = [key for key in self._below(prefix) if not key.endswith("/")]  # keys that end so are the folders of consoles
            if not keys:
                self._need_bucket()
                raise StoreError.at(self._place(prefix), "there is nothing below it", "check the URI")
            names = seals_last([checked(self.uri, key[len(below(prefix)) :]) for key in keys])
            entries = self._entries(below(prefix) + MANIFEST) if MANIFEST in names else {}
            if missing := sorted(set(entries) - set(names)):
                raise StoreError.at(self._place(prefix), f"lacks {', '.join(missing)} of its manifest", "remove it and make it again")
            fetch: Callable[[str], None] = lambda name: self._fetch(below(prefix) + name, target / name, entries.get(name))  # noqa: E731
            _each(fetch, [name for name in names if name != MANIFEST and (wanted is None or wanted(name))], threads=_STREAMS)
            _each(fetch, [name for name in names if name == MANIFEST], threads=1)
        return target

    def probe(self) -> str:
        """Write, read and delete a small key; what was found, in a line. Raises StoreError where that fails."""
        key, data = f"probe-{uuid.uuid4().hex}", b"cotrain"
        with self._told(key):
            self.write(key, data)
            try:
                if self.read(key) != data:
                    raise StoreError.at(self._place(key), "what was written does not read back", "use another store")
                conditions = "ignored: let one publisher run at a time" if self._put_if(key, data, None) else "honoured"
            except ClientError as error:
                if _status(error) != 501 and _code(error) != "NotImplemented":
                    raise
                conditions = "not implemented: let one publisher run at a time"
            finally:
                self.delete(key)
        return f"bucket {self.bucket} at {self._client.meta.endpoint_url}: writes, reads and deletes; conditional writes {conditions}"

    @property
    def _client(self) -> Any:
        settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
        return _client(os.getpid(), settings)

    def _where(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": below(self.prefix) + checked(self.uri, key)}

    def _place(self, key: str) -> str:
        return f"{self.uri}/{key}" if key else self.uri

    def _below(self, prefix: str) -> Iterator[str]:
        start = below(self.prefix) + (below(checked(self.uri, prefix)) if prefix else "")
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start):
            for item in page.get("Contents", ()):
                yield item["Key"][len(below(self.prefix)) :]

    def _entries(self, key: str) -> Mapping[str, Any]:
        try:
            files = json.loads(self.read(key))["files"]
            return {name: {"sha256": entry["sha256"], "bytes": entry["bytes"]} for name, entry in files.items()}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise StoreError.at(self._place(key), "is not a manifest", "remove the folder and make it again") from error

    def _need_bucket(self) -> None:
        # an absent key and an absent bucket get the same answer to HEAD
        if not self._bucket_seen:
            with self._told(""):
                try:
                    self._client.head_bucket(Bucket=self.bucket)
                except ClientError as error:
                    if _status(error) == 404:
                        finding = f"HeadBucket: NoSuchBucket: there is no bucket '{self.bucket}'"
                        raise StoreError.at(self.uri, finding, remedy("NoSuchBucket")) from error
                    if _status(error) != 403:  # may not be asked, but is there
                        raise
            self._bucket_seen = True

    def _put_if(self, key: str, data: bytes, expect: str | None) -> bool:
        condition = {"IfNoneMatch": "*"} if expect is None else {"IfMatch": expect}
        try:
            self._client.put_object(**self._where(key), Body=data, **condition)
        except ClientError as error:
            if _status(error) == 412 or (_status(error) == 404 and _code(error) != "NoSuchBucket"):
                return False
            raise
        return True

    def _warn_unconditional(self) -> None:
        endpoint = self._client.meta.endpoint_url
        if endpoint not in _unconditional:
            _unconditional.add(endpoint)
            warnings.warn(
                f"{endpoint} does not implement conditional writes: {self.uri} is only safe with one publisher at a time", stacklevel=4
            )

    def _send(self, file: Path, key: str) -> None:
        where = self._where(key)
        with file.open("rb") as body:
            if file.stat().st_size < MULTIPART_BYTES:
                self._client.put_object(**where, Body=body)
            else:
                config = TransferConfig(multipart_threshold=MULTIPART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)
                self._client.upload_fileobj(body, where["Bucket"], where["Key"], Config=config)

    def _fetch(self, key: str, file: Path, entry: Mapping[str, Any] | None) -> None:
        if entry and file.is_file() and file.stat().st_size == entry["bytes"] and _sha256(file) == entry["sha256"]:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{RESERVED}part-{uuid.uuid4().hex}")
        try:
            found = _again(lambda: self._stream(key, part))
            if entry and found != entry["sha256"]:
                finding = f"has SHA-256 {found}, its manifest says {entry['sha256']}"
                raise StoreError.at(self._place(key), finding, "remove it and make it again")
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)

    def _stream(self, key: str, part: Path) -> str:
        body, sha = self._client.get_object(**self._where(key))["Body"], hashlib.sha256()
        with part.open("wb") as out:
            while block := body.read(BLOCK_BYTES):
                sha.update(block)
                out.write(block)
        return sha.hexdigest()

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """Every failure as a StoreError with the URI, the server's word and a remedy; an absent key as FileNotFoundError."""
        place = self._place(key)
        try:
            yield
        except ClientError as error:
            if _code(error) in _ABSENT and key:
                raise FileNotFoundError(place) from error
            word = error.response.get("Error", {}).get("Message") or "no further word"
            finding = f"{error.operation_name}: {_code(error)}: {word}"
            raise StoreError.at(place, finding, remedy(_code(error), str(_status(error)))) from error
        except (BotoCoreError, Boto3Error, ValueError) as error:
            names = [kind.__name__ for kind in type(error).__mro__]
            bundle = f" (AWS_CA_BUNDLE={os.environ['AWS_CA_BUNDLE']})" if "SSLError" in names and "AWS_CA_BUNDLE" in os.environ else ""
            raise StoreError.at(place, f"{names[0]}: {error}{bundle}", remedy(*names)) from error
        except FileNotFoundError:
            raise
        except OSError as error:
            file = f" ({error.filename})" if error.filename else ""
            raise StoreError.at(place, f"{error.strerror or error}{file}", "check the files on this machine, and AWS_CA_BUNDLE") from error


@lru_cache(maxsize=4)
def _client(process: int, settings: tuple[tuple[str, str], ...]) -> Any:
    """A client for this process and these AWS_* variables; made once, since that takes longer than a request."""
    config = Config(
        request_checksum_calculation="when_required",  # older servers refuse the checksums that are sent otherwise
        response_checksum_validation="when_required",
        retries={"mode": "standard"},
        connect_timeout=10,
        max_pool_connections=16,
        user_agent_extra="cotrain",
    )
    return boto3.session.Session().client("s3", config=config)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _again(work: Callable[[], T]) -> T:
    """Once more where the answer was cut off half way, which the client itself never retries."""
    wait = wait_random_exponential(multiplier=0.1, max=5)
    return Retrying(retry=retry_if_exception_type(_CUT), stop=stop_after_attempt(4), wait=wait, reraise=True)(work)


def _each(work: Callable[[str], Any], keys: Iterable[str], threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, keys):  # the first failure cancels what has not begun
            pass


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
