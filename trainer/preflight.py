"""What a training pod looks at before it trains: each fault with its remedy in seconds, instead of a time-out after half an hour.

Runs as an init container, `python3 -m trainer.preflight`, with torchrun's environment (PET_*) and

    COTRAIN_ROOT, COTRAIN_KEY      where results are kept, and what is to be trained
    COTRAIN_GPUS_PER_NODE          0: no GPU is looked for
    COTRAIN_SHM_BYTES              what /dev/shm should have
    COTRAIN_MIN_NODES              where it is set nodes may come and go, and are not waited for
    COTRAIN_PREFLIGHT_WAIT_S       how long peers have to start once a machine has room for them; default 900
    COTRAIN_TERMINATION_LOG        where the faults go besides

Exit code 0, 2 with every fault that was found, or 143 if it was asked to stop.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from trainer.errors import Fault, LaunchError, StoreError, UserError
from trainer.node import STOPPED, TERMINATION_LOG, message, trained
from trainer.observe import word_of
from trainer.peers import SKEW_S, Meeting, meet
from trainer.stores import open_store

SHM = Path("/dev/shm")
_STORE_PATIENCE_S = 20.0
"""A store that can't be reached may only be starting, as the network of a new pod may be."""


def main() -> int:
    """Look at this node, then meet the others."""
    environ = os.environ
    root, key = environ.get("COTRAIN_ROOT", ""), environ.get("COTRAIN_KEY", "")
    node = int(environ.get("PET_NODE_RANK") or 0)
    try:
        if root and key and trained(root, key):
            _say("it is trained already")
            return 0
    except UserError:
        pass  # said below, with the rest
    faults = list(here(root, key))
    if not environ.get("COTRAIN_MIN_NODES"):
        meeting = Meeting.from_environment(environ, float(environ.get("COTRAIN_PREFLIGHT_WAIT_S") or 900))
        if meeting.nodes > 1:
            gpu = environ.get("COTRAIN_GPUS_PER_NODE", "0") != "0" and not faults
            faults += meet(meeting, faults, gpu, _say)
    if not faults:
        _say(f"node {node}: ok")
        return 0
    error = LaunchError(faults)
    print(error, file=sys.stderr, flush=True)
    log = environ.get(TERMINATION_LOG)
    if log:
        Path(log).write_text(message([word_of(f"preflight of node {node}", error)]))
    return error.exit_code


def here(root: str, key: str) -> Iterator[Fault]:
    """The faults of this node alone."""
    wanted = int(os.environ.get("COTRAIN_SHM_BYTES") or 0)
    yield from shared_memory(SHM, wanted)
    yield from scratch(Path(os.environ.get("TMPDIR") or "/tmp"))
    yield from store(root, key)
    gpus = int(os.environ.get("COTRAIN_GPUS_PER_NODE") or 0)
    if gpus:
        yield from accelerators()


def shared_memory(folder: Path, wanted_bytes: int) -> Iterator[Fault]:
    """Whether ranks can exchange through shared memory, and through as much as the document says."""
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        yield Fault(str(folder), "is not there, or can't be written to", "mount a memory-backed emptyDir there: k8s/base/runtime.yaml does")
        return
    found = os.statvfs(folder)
    size = found.f_frsize * found.f_blocks
    if size < 0.9 * wanted_bytes:
        finding = f"has {size / 2**20:.0f} MiB, cluster.shm_gib asks for {wanted_bytes / 2**30:g} GiB"
        yield Fault(str(folder), finding, "mount a memory-backed emptyDir with that sizeLimit there, and give the pod that much memory")


def scratch(folder: Path) -> Iterator[Fault]:
    """Whether there is a place for temporary files; the root file system of a pod is read-only."""
    probe = folder / f"cotrain-{uuid.uuid4().hex}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        yield Fault(str(folder), f"can't be written to: {error.strerror}", "mount an emptyDir there: k8s/base/runtime.yaml does")


def store(root: str, key: str) -> Iterator[Fault]:
    """Whether the store is the one the launcher used, takes and gives back bytes, and has this machine's time."""
    if not root:
        yield Fault("COTRAIN_ROOT", "is not set", "render the training job with cotrain: it says where results are kept")
        return
    probe = f"preflight/{uuid.uuid4().hex}"
    until = time.monotonic() + _STORE_PATIENCE_S
    while True:
        try:
            where = open_store(root)
            where.write(probe, b"preflight")
            same = where.read(probe) == b"preflight"
            where.delete(probe)
            known = not key or where.exists(f"requests/train/{key}.json")
            clock_s = where.clock_s()
            break
        except StoreError as error:
            # what a machine can't put right by waiting is said at once
            if time.monotonic() > until or not any("ndpoint" in f.finding or "onnect" in f.finding for f in error.faults):
                yield from error.faults
                return
            time.sleep(1)
    if not same:
        yield Fault(root, "gave back other bytes than were written", "use a store that reads what was written")
    if not known:
        finding = f"has no requests/train/{key}.json, which the launcher wrote"
        yield Fault(root, finding, "give pods the same root and endpoint as the launcher: AWS_ENDPOINT_URL_S3, the volume of a path")
    if clock_s is not None and abs(clock_s) > SKEW_S:
        ahead = "behind" if clock_s > 0 else "ahead of"
        yield Fault(
            "clock",
            f"this machine's clock is {abs(clock_s):.0f} s {ahead} that of {root}",
            "synchronise the machine's clock: chrony or NTP",
        )


def accelerators() -> Iterator[Fault]:
    """Whether torch sees a GPU and NCCL."""
    import torch
    import torch.distributed as dist

    if not torch.cuda.is_available():
        built = torch.version.cuda
        finding = "the document asks for GPUs and torch sees none"
        if built:
            yield Fault(
                "GPU",
                finding,
                "request them for the preflight container too: k8s/components/gpu does; check the device plugin and the driver",
            )
        else:
            yield Fault("GPU", f"{finding}: this build of torch has no CUDA", "use the CUDA image: docker build --build-arg TORCH_INDEX= .")
    else:
        try:
            torch.ones(1, device="cuda").add_(1).item()
        except RuntimeError as error:
            finding = f"torch sees it and can't compute on it: {(str(error).splitlines() or [''])[0]}"
            yield Fault("GPU", finding, "use an image whose CUDA build fits the driver and the GPU: nvidia-smi says which they are")
    if not dist.is_nccl_available():
        yield Fault("NCCL", "this build of torch has none", "use the CUDA image: docker build --build-arg TORCH_INDEX= .")


def _say(line: str) -> None:
    print(json.dumps({"time": round(time.time(), 3), "event": "preflight", "said": line}), flush=True)


if __name__ == "__main__":
    # the first process of a container is not ended by a signal that it doesn't handle: the pod would stay for its whole grace period
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(STOPPED))
    code = main()
    sys.stdout.flush()
    os._exit(code)  # threads of the process group may still wait for a peer that is gone
