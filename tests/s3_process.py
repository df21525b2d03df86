"""moto's S3 server as a process of its own, with two things moto lacks: atomic conditional writes, and faults.

    python tests/s3_process.py [--host ADDRESS] [--certificate FILE --key FILE]      prints its port, serves until it is killed

What goes wrong depends on the bucket's name, so that tests share a server and stay independent:

    refuses-...    conditional writes get 501 NotImplemented
    ignores-...    conditional writes are done without looking at the condition
    cuts-...       every other GET of an object of more than 1000 bytes ends half way
    breaks-...     every GET of an object of more than 1000 bytes ends half way
"""

from __future__ import annotations

import argparse
import itertools
import threading

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

NOT_IMPLEMENTED = b'<?xml version="1.0"?><Error><Code>NotImplemented</Code><Message>A header is not implemented</Message></Error>'


class Faults:
    """WSGI middleware around moto."""

    def __init__(self, app) -> None:
        self.app = app
        self.one_writer = threading.Lock()  # moto checks the condition, then writes: not atomic among its threads
        self.gets = itertools.count()

    def __call__(self, environ, start_response):
        bucket = environ["PATH_INFO"].lstrip("/").partition("/")[0]
        conditional = environ["REQUEST_METHOD"] == "PUT" and ("HTTP_IF_MATCH" in environ or "HTTP_IF_NONE_MATCH" in environ)
        if conditional and bucket.startswith("refuses-"):
            environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            start_response("501 Not Implemented", [("Content-Type", "application/xml"), ("Content-Length", str(len(NOT_IMPLEMENTED)))])
            return [NOT_IMPLEMENTED]
        if conditional and bucket.startswith("ignores-"):
            environ.pop("HTTP_IF_MATCH", None)
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if conditional:
            with self.one_writer:
                return self.app(environ, start_response)
        answer = self.app(environ, start_response)
        if environ["REQUEST_METHOD"] == "GET" and bucket.startswith(("cuts-", "breaks-")):
            body = b"".join(answer)
            if len(body) > 1000 and (bucket.startswith("breaks-") or next(self.gets) % 2 == 0):
                return self.half(body)
            return [body]
        return answer

    def half(self, body: bytes):
        yield body[: len(body) // 2]
        raise ConnectionAbortedError("cut on purpose")


class Handler(MotoRequestHandler):
    def log(self, *args, **kwargs) -> None:
        pass


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--certificate")
    options.add_argument("--key")
    given = options.parse_args()
    app = Faults(DomainDispatcherApplication(create_backend_app))
    context = (given.certificate, given.key) if given.certificate else None
    server = make_server(given.host, 0, app, threaded=True, request_handler=Handler, ssl_context=context)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
