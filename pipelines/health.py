"""What this machine has: the findings of `cotrain doctor`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from shutil import disk_usage

from trainer.errors import CotrainError

Finding = tuple[str, bool, str]
_TIMEOUT_S = 10


def findings(root: str, endpoint: str | None) -> Iterator[Finding]:
    """What was looked at, whether it is well, and what was found."""
    yield "python", sys.version_info >= (3, 11), f"{sys.version.split()[0]} at {sys.executable}"
    yield _machine()
    yield from _torch()
    yield "deepspeed", True, f"{version('deepspeed')}, needs no compiler on CPUs"
    yield _store(root)
    yield _kfp(endpoint)


def _machine() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    free = f"{memory.total / 2**30:.1f} GiB memory ({memory.available / 2**30:.1f} free), {disk_usage('.').free / 2**30:.0f} GiB disk free"
    return "machine", True, f"{os.cpu_count()} cores, {free}"


def _torch() -> Iterator[Finding]:
    import torch

    yield "torch", True, torch.__version__
    if not torch.cuda.is_available():
        yield "gpu", True, "none: training runs on CPUs over gloo (bf16, fp32)"
        return
    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    low = "bf16, fp16" if torch.cuda.is_bf16_supported() else "fp16"
    yield "gpu", True, f"{len(names)}: {', '.join(names)}; {low}; NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"


def _store(root: str) -> Finding:
    from trainer.stores import open_store

    try:
        return "store", True, open_store(root).probe()  # type: ignore[attr-defined]
    except CotrainError as error:
        return "store", False, str(error)
    except OSError as error:
        return "store", False, f"{root}: {error.strerror or error}\n    fix: give a folder that can be written"


def _kfp(endpoint: str | None) -> Finding:
    if not endpoint:
        return "kfp", True, f"SDK {version('kfp')}; no endpoint given (--kfp or KFP_ENDPOINT), pipelines run on this machine"
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import urlopen

    url = f"{endpoint.rstrip('/')}/apis/v2beta1/healthz"
    try:
        with urlopen(url, timeout=_TIMEOUT_S):
            return "kfp", True, f"SDK {version('kfp')}; {endpoint} answers"
    except HTTPError as error:
        return "kfp", False, f"{url}: HTTP {error.code}\n    fix: give the address of the Kubeflow Pipelines API"
    except ValueError as error:
        return "kfp", False, f"{url}: {error}\n    fix: write http:// or https:// before the address"
    except (OSError, HTTPException) as error:
        return (
            "kfp",
            False,
            f"{url}: {getattr(error, 'reason', None) or error}\n    fix: check the address, or forward the port of ml-pipeline",
        )
