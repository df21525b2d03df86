"""What a Kubeflow Pipelines server answers when it does not do what it was asked: as errors with a place, a finding and a remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trainer.errors import CotrainError, LaunchError, UserError

_FORWARD = "check the address, or forward the port: kubectl -n kubeflow port-forward svc/ml-pipeline 8888"
_CHARS = 500


@contextmanager
def told(endpoint: str, namespace: str | None, doing: str) -> Iterator[None]:
    """Turn what the SDK raises into an error for whoever asked.

    Raises:
        LaunchError: the server is away, or ill.
        UserError: it does not let one in, or will not have what was asked.
    """
    import kfp_server_api
    import urllib3

    try:
        yield
    except kfp_server_api.ApiException as error:
        raise _answered(endpoint, namespace, doing, int(error.status or 0), _said(error)) from error
    except (kfp_server_api.exceptions.ApiValueError, kfp_server_api.exceptions.ApiTypeError) as error:
        raise CotrainError(f"{endpoint}: can't {doing}: {error}") from error
    except urllib3.exceptions.HTTPError as error:
        raise _unreached(endpoint, getattr(error, "reason", None) or error) from error
    except (json.JSONDecodeError, ValueError) as error:
        raise UserError.at(endpoint, f"can't {doing}: {error}", "check the address of the API, and what was asked for") from error
    except OSError as error:
        raise _unreached(endpoint, error) from error


def _answered(endpoint: str, namespace: str | None, doing: str, status: int, said: str) -> CotrainError:
    where = f"in namespace {namespace}" if namespace else "there"
    finding = f"can't {doing}: HTTP {status}{f', {said}' if said else ''}"
    if status == 401:
        return UserError.at(endpoint, finding, "say who you are: --token-file FILE, KFP_TOKEN, or KFP_COOKIE from a browser")
    if status == 403:
        may = f"kubectl auth can-i create runs.pipelines.kubeflow.org -n {namespace or 'NAMESPACE'}"
        return UserError.at(endpoint, finding, f"ask for the role to edit pipelines {where}, and see with: {may}")
    if status == 404:
        return UserError.at(endpoint, finding, "check the id and the namespace, and that the address is that of the Kubeflow Pipelines API")
    if status in (408, 425, 429) or status >= 500:
        return LaunchError.at(endpoint, finding, "try again, or see why: kubectl -n kubeflow logs deploy/ml-pipeline")
    return UserError.at(endpoint, finding, "correct what the server names")


def _unreached(endpoint: str, reason: Any) -> UserError:
    import ssl

    import urllib3

    text = str(reason).removeprefix("<").split(">: ", 1)[-1]
    cause = getattr(reason, "args", (None,))[0]
    if isinstance(reason, ssl.SSLError | urllib3.exceptions.SSLError) or isinstance(cause, ssl.SSLError):
        if "CERTIFICATE_VERIFY_FAILED" in text:
            remedy = "name the certificate authority: --ca-file FILE, or set SSL_CERT_FILE"
        else:
            remedy = "check that the address begins with http:// or https:// as the server has it"
        return LaunchError.at(endpoint, f"no secure connection: {text}", remedy)
    return LaunchError.at(endpoint, f"can't be reached: {text}", _FORWARD)


def _said(error: Any) -> str:
    """The server's own words, without the trace of its own that it adds."""
    try:
        body = json.loads(error.body)
        text = body.get("message") or body.get("error") or body.get("error_message") or ""
    except (TypeError, ValueError, AttributeError):
        text = str(error.reason or "")
    return " ".join(str(text).split())[:_CHARS]
