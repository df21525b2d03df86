"""What this machine has: the findings of `cotrain doctor`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from shutil import disk_usage, which

from trainer.errors import CotrainError

Finding = tuple[str, bool, str]


def findings(root: str, endpoint: str | None) -> Iterator[Finding]:
    """What was looked at, whether it is well, and what was found."""
    import psutil

    yield "python", sys.version_info >= (3, 11), f"{sys.version.split()[0]} at {sys.executable}"
    memory = psutil.virtual_memory()
    yield "machine", True, f"{os.cpu_count()} cores, {memory.total / 2**30:.1f} GiB memory ({memory.available / 2**30:.1f} free), {_disk()}"
    yield from _torch()
    yield "deepspeed", True, version("deepspeed") + (", no compiler needed on CPUs" if not which("g++") else "")
    yield _store(root)
    yield _kfp(endpoint)


def _disk() -> str:
    return f"{disk_usage('.').free / 2**30:.0f} GiB disk free"


def _torch() -> Iterator[Finding]:
    import torch

    yield "torch", True, torch.__version__
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
        low = "bf16, fp16" if torch.cuda.is_bf16_supported() else "fp16"
        yield "gpu", True, f"{len(names)}: {', '.join(names)}; {low}; NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"
    else:
        yield "gpu", True, "none: training runs on CPUs over gloo (bf16, fp32)"


def _store(root: str) -> Finding:
    from trainer.stores import open_store

    try:
        return "store", True, open_store(root).probe()  # type: ignore[attr-defined]
    except CotrainError as error:
        return "store", False, str(error)


def _kfp(endpoint: str | None) -> Finding:
    if not endpoint:
        return "kfp", True, f"SDK {version('kfp')}; no endpoint given (--kfp or KFP_ENDPOINT), pipelines run on this machine"
    import requests

    url = f"{endpoint.rstrip('/')}/apis/v2beta1/healthz"
    try:
        answer = requests.get(url, timeout=10)
    except requests.RequestException as error:
        return "kfp", False, f"{url}: {type(error).__name__}\n    fix: check the address, or forward the port of ml-pipeline"
    if not answer.ok:
        return "kfp", False, f"{url}: HTTP {answer.status_code}\n    fix: give the address of the Kubeflow Pipelines API"
    return "kfp", True, f"SDK {version('kfp')}; {endpoint} answers"
