"""Every block of README.md and docs/ does what it says.

A page is gone through from top to bottom, in a folder of its own: a clone of the project whose examples are
shortened, and in which `cotrain run examples/01-digits.yaml` was run once for all pages. By language:

    bash      is run, and has to succeed
    console   `$ command` is run on a terminal; the lines below it have to occur in what it prints, in that order.
              Numbers, digests and verdicts may differ, `...` stands for anything
    python    is run
    yaml      is a document that `cotrain check` accepts
    json      is JSON;  text, csv and blocks without a language are not commands

A comment before a block changes that:

    <!-- test: file NAME -->                      is written to NAME first
    <!-- test: merged into DOCUMENT -->           yaml that replaces fields of a document
    <!-- test: same document as DOCUMENT -->      yaml that says the same
    <!-- test: line in FILE under TEXT -->        goes in below the line with TEXT
    <!-- test: shared run -->                     console: the output of the run that pages share
    <!-- test: run becomes check, WHY -->         bash in which `cotrain run` only checks
    <!-- test: make -n, WHY -->                   bash in which make only says what it would do
    <!-- test: s3, WHY -->                        s3.example.com is a server of the tests
    <!-- test: kfp, WHY -->                       with a Kubeflow Pipelines server of the tests, and the root of the first run
    <!-- test: alert rules over the metrics above -->
    <!-- not run: WHY -->                         has the right syntax, no more; there are NOT_RUN of these
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp_server
import pytest
import yaml
from command import COMMAND, environment

from trainer.check import load_spec
from trainer.spec import JointSpec

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
PAGES = sorted(str(page.relative_to(ROOT)) for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
NOT_RUN = 4
BLOCK = re.compile(r"^(?:<!-- (?P<say>(?:test|not run): [^\n]*?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
CLONED = ("trainer", "components", "pipelines", "tests", "scripts", "docs", "examples")
QUICK = ["cluster.processes_per_node=1", "phases.joint.epochs=3", "compare.resamples=200", "compare.gate.worst_drop=100", "observe.port=0"]
FIRST = "cotrain run examples/01-digits.yaml"


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, its language, its text, and what the comment before it says."""

    place: str
    language: str
    text: str
    say: str


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    found = BLOCK.finditer(text)
    return [Block(f"{page}:{text.count(chr(10), 0, m.start()) + 1}", m["language"], m["text"], m["say"] or "") for m in found]


ALL = [block for page in PAGES for block in blocks(page)]


# --- a clone --------------------------------------------------------------------------------------------------------


def shell(folder: Path, script: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=folder, env=surroundings(folder) | more, capture_output=True, text=True, timeout=600, check=False)


def surroundings(folder: Path) -> dict[str, str]:
    """The environment of someone who works in a clone."""
    return environment(folder, {"PYTHONPATH": str(folder), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})


def terminal(folder: Path, script: str, **more: str) -> str:
    """What a command puts on a terminal, without control sequences."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 60, 200, 0, 0))
    plain = surroundings(folder) | {"TERM": "xterm", "COLUMNS": "", "NO_COLOR": "1"} | more
    ends: dict[str, Any] = {"stdin": its, "stdout": its, "stderr": its, "start_new_session": True}
    with subprocess.Popen(["bash", "-c", script], cwd=folder, env=plain, **ends):
        os.close(its)
        seen = b""
        with suppress(OSError):  # the other side has ended
            while part := os.read(ours, 1 << 16):
                seen += part
        os.close(ours)
    text = re.sub(r"\x1b\[[0-9;]*m", "", seen.decode().replace("\r", "\n"))  # colours
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", text)  # a frame over the one before


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A clone in which the first example was run, put aside, and what that said."""
    clone = tmp_path_factory.mktemp("pages") / "clone"
    clone.mkdir()
    for name in CLONED:
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, clone)
    example = clone / "examples" / "01-digits.yaml"
    quick = load_spec(str(example), QUICK)
    example.write_text(yaml.safe_dump(quick.to_json(), sort_keys=False))
    said = terminal(clone, FIRST)
    assert "published: " in said, said[-3000:]
    return shutil.copytree(clone, clone.with_name("aside"), ignore=shutil.ignore_patterns("tmp")), said


@pytest.fixture
def clone(shared: tuple[Path, str]) -> Path:
    """The clone as the first run left it, in the folder where that was: results name their place."""
    folder = shared[0].with_name("clone")
    shutil.rmtree(folder)
    return shutil.copytree(shared[0], folder)


# --- what is done with a block --------------------------------------------------------------------------------------


def run_bash(block: Block, folder: Path, script: str, **more: str) -> None:
    ran = shell(folder, script, **more)
    assert ran.returncode == 0, f"{block.place}: exit code {ran.returncode}\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"


def run_console(block: Block, folder: Path, said: str | None, **more: str) -> None:
    for part in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
        command, _, wanted = part.partition("\n")
        found = plain(terminal(folder, command, **more) if said is None else said)
        at = 0
        for line in plain(wanted):
            pattern = re.compile(".*".join(map(re.escape, line.split("..."))))
            at = next((n + 1 for n in range(at, len(found)) if pattern.fullmatch(found[n])), -1) if line != "..." else at
            assert at >= 0, f"{block.place}: '$ {command}' does not say, or not in that order: {line}\n" + "\n".join(found[-60:])


def plain(text: str) -> list[str]:
    """Lines without what differs from run to run: numbers, digests, verdicts, the length of bars."""
    text = re.sub(r"[━╸╺]+", "━", text)
    text = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b", "#", text)
    text = re.sub(r"[+-]?\d[\d.,:]*(e[+-]?\d+)?([T]\d+)?", "#", text)
    text = re.sub(r"\b(better|worse|same)\b", "same", text)
    return [line for line in (" ".join(line.split()) for line in text.splitlines()) if line]


def merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    both = {k: merged(low[k], v) if isinstance(v, dict) and isinstance(low.get(k), dict) and k != "phases" else v for k, v in high.items()}
    return {**low, **both}


def check_yaml(block: Block, folder: Path) -> None:
    said, _, document = block.say.removeprefix("test: ").partition(" examples/")
    made = folder / "block.yaml"
    made.write_text(block.text)
    if said == "merged into":
        change = yaml.safe_load(block.text)
        made.write_text(yaml.safe_dump(merged(yaml.safe_load((folder / "examples" / document).read_text()), change), sort_keys=False))
    run_bash(block, folder, "cotrain check block.yaml")
    if said == "same document as":
        assert read(folder / "block.yaml") == read(ROOT / "examples" / document), f"{block.place} is not {document}"


def read(file: Path) -> JointSpec:
    return load_spec(str(file), sources=False)


def check_alerts(block: Block, page: str) -> None:
    rules = [rule for group in yaml.safe_load(block.text)["groups"] for rule in group["rules"]]
    known = set(re.findall(r"^\| `(cotrain_\w+)`", page, re.M))
    assert rules
    for rule in rules:
        used = set(re.findall(r"cotrain_\w+", rule["expr"]))
        assert used, f"{block.place}: {rule['alert']} looks at nothing of cotrain"
        assert used <= known, f"{block.place}: {rule['alert']} looks at what the page does not know"


def insert(block: Block, folder: Path) -> None:
    found = re.fullmatch(r"test: line in (\S+) under (.+)", block.say)
    assert found
    file = folder / found[1]
    lines = file.read_text().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if line.strip().startswith(found[2]))
    file.write_text("".join([*lines[: at + 1], block.text, *lines[at + 1 :]]))


def only_syntax(block: Block) -> None:
    if block.language == "python":
        compile(block.text, block.place, "exec")
    else:
        assert block.language == "bash"
        subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


def do(block: Block, folder: Path, page: str, said: str, s3: Mapping[str, Any]) -> None:
    say, language = block.say, block.language
    if say.startswith("not run: "):
        only_syntax(block)
    elif say.startswith("test: line in "):
        insert(block, folder)
    elif say.startswith("test: alert rules"):
        check_alerts(block, page)
    elif say.startswith("test: run becomes check, "):
        run_bash(block, folder, 'cotrain() { [ "$1" = run ] && set -- check "${@:2}"; command cotrain "$@"; }\n' + block.text)
    elif say.startswith("test: make -n, "):
        run_bash(block, folder, block.text, MAKEFLAGS="n")
    elif say.startswith("test: s3, "):
        run_bash(block, folder, block.text.replace("https://s3.example.com", s3["endpoint"]), **s3["env"])
    elif say.startswith("test: kfp, "):
        with kfp_server.serving() as kfp:
            place = {"KFP_ENDPOINT": kfp.url, "COTRAIN_ROOT": str(folder / "runs"), "COTRAIN_IMAGE": "cotrain:1"}
            run_console(block, folder, None, **place) if language == "console" else run_bash(block, folder, block.text, **place)
    elif language == "console":
        run_console(block, folder, said if say == "test: shared run" else None)
    else:
        if say.startswith("test: file "):
            (folder / say.removeprefix("test: file ")).write_text(block.text)
        if language == "yaml":
            check_yaml(block, folder)
        elif language == "python":
            (folder / "block.py").write_text(block.text)
            run_bash(block, folder, "python block.py")
        elif language == "bash":
            run_bash(block, folder, block.text)
        elif language == "json":
            json.loads(block.text)
        else:
            assert language in ("", "text", "csv", "mermaid"), f"{block.place}: nothing is known of {language}"


@pytest.fixture(scope="module")
def lake(s3_server: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A server with the bucket that the pages speak of."""
    import boto3

    env = s3_server["env"]
    keys = {"aws_access_key_id": env["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": env["AWS_SECRET_ACCESS_KEY"]}
    client = boto3.client("s3", endpoint_url=s3_server["endpoint"], region_name="us-east-1", **keys)
    client.create_bucket(Bucket="lake")
    return s3_server


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_every_block_of_a_page_does_what_it_says(page: str, clone: Path, shared: tuple[Path, str], lake: dict[str, Any]) -> None:
    for block in blocks(page):
        do(block, clone, (ROOT / page).read_text(), shared[1], lake)


def test_blocks_that_are_not_run_are_few_and_say_why() -> None:
    reasons = [block.say.removeprefix("not run: ") for block in ALL if block.say.startswith("not run: ")]
    assert len(reasons) == NOT_RUN, reasons
    assert all(re.match(r"(needs|activates) \w+", reason) for reason in reasons), reasons


def test_no_block_escapes() -> None:
    """Every fence is read as part of a block, and every comment about a block stands right before one."""
    for page in PAGES:
        text = (ROOT / page).read_text()
        assert len(re.findall(r"^\s*```", text, re.M)) == 2 * len(blocks(page)), page
        assert len(re.findall(r"^<!-- (?:test|not run): ", text, re.M)) == sum(bool(block.say) for block in blocks(page)), page


def test_the_command_that_pages_speak_of_is_the_one_that_is_tested() -> None:
    assert Path(COMMAND).is_file()
    assert FIRST in (ROOT / "README.md").read_text()
