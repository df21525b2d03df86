"""Write requirements.lock: every package that `cotrain[dev]` needs, at one exact version each.

    python scripts/lock.py              keep the versions that are locked, add what is missing, drop what nothing needs
    python scripts/lock.py --upgrade    the newest versions that go together

pip resolves, so what is locked is what pip installs. Only packages that come as a wheel are taken, so that nobody
needs a compiler, but for the pure-Python ones that are published as sources only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"

# Not moved by --upgrade: the CPU and CUDA builds and DeepSpeed are tested together.
HELD = ["torch==2.13.0"]
# What installs and builds the rest. `pyproject.toml` names the least version only.
BUILD = ["pip", "setuptools", "wheel"]
# Published as sources only; all pure Python.
SOURCES = ["deepspeed", "kfp-server-api"]
# A CUDA build of torch brings these and pins them itself; a CPU build has none of them.
PLATFORM = re.compile(r"^(nvidia-|cuda-|triton$)")

HEADER = """\
# Every package, at the version that cotrain is tested with. Made by `make lock`; don't edit.
# Used as constraints (`pip install -c requirements.lock ...`), so that a machine that only runs gets no test tools.
"""


def pins(text: str) -> list[str]:
    """The `name==version` lines of a lock."""
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def resolve(constraints: list[str]) -> dict[str, str]:
    """What pip would install into an empty environment: version by canonical name."""
    with tempfile.TemporaryDirectory() as scratch:
        constraint, report = Path(scratch, "constraints.txt"), Path(scratch, "report.json")
        constraint.write_text("\n".join(constraints) + "\n")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", str(report)]
        command += ["--only-binary=:all:", f"--no-binary={','.join(SOURCES)}", "--constraint", str(constraint)]
        # in this environment's setuptools, not in a fresh one with the newest of everything
        command += ["--no-build-isolation", *BUILD, f"{ROOT}[dev]"]
        subprocess.run(command, check=True, env={**os.environ, "DS_BUILD_OPS": "0"})
        found = json.loads(report.read_text())["install"]
    versions = {re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower(): item["metadata"]["version"] for item in found}
    # the part after + names a build of one and the same version: 2.13.0+cpu
    return {name: version.split("+")[0] for name, version in versions.items() if not PLATFORM.match(name) and name != "cotrain"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that go together")
    keep = [] if parser.parse_args().upgrade or not LOCK.exists() else pins(LOCK.read_text())
    versions = resolve(list(dict.fromkeys(HELD + keep)))
    LOCK.write_text(HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(versions.items())))
    print(f"{LOCK.name}: {len(versions)} packages")


if __name__ == "__main__":
    main()
