"""The workflows that others copy: they parse, name commands and options that exist, and their scripts do what they promise."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from command import ROOT, document, environment, write, write_csv
from finished import finished
from kfp_server import KfpServer, serving

from pipelines.cli import main

FILES = sorted((ROOT / "ci").iterdir())
COMMAND = re.compile(r"(?<![\w/-])cotrain (?!\")([a-z][^|>;#`\n]*)")


def scripts(thing: Any) -> Iterator[str]:
    """Every script of a workflow, wherever it stands."""
    if isinstance(thing, dict):
        for name, value in thing.items():
            if name in ("run", "script"):
                yield "\n".join(value) if isinstance(value, list) else value
            else:
                yield from scripts(value)
    elif isinstance(thing, list):
        for value in thing:
            yield from scripts(value)


def all_scripts(file: Path) -> list[str]:
    if file.suffix == ".sh":
        return [file.read_text()]
    return [script for page in yaml.safe_load_all(file.read_text()) for script in scripts(page)]


def test_there_is_one_for_each_system():
    assert [file.name for file in FILES] == ["github.yml", "gitlab.yml", "recurring-run.sh", "tekton.yaml"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_workflow_names_only_commands_options_and_variables_that_exist(file):
    found = [shlex.split(match[1]) for script in all_scripts(file) for match in COMMAND.finditer(script)]
    assert found
    for words in found:
        command: click.Command = main
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("-")} <= known, words
    sources = "".join(source.read_text() for package in ("pipelines", "components") for source in (ROOT / package).glob("*.py"))
    for variable in set(re.findall(r"\b(?:KFP|COTRAIN)_[A-Z_]+\b", file.read_text())):
        assert f'"{variable}"' in sources, variable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_csv(tmp_path / "table.csv", rows=20)
    write(tmp_path, document())
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[KfpServer]:
    def done(run: dict[str, Any]) -> None:
        finished(str(folder / "runs"), run["display_name"].rpartition("-")[2], run["run_id"], published=False)
        server.finish(run["run_id"])

    with serving() as server:
        server.on_run = done
        yield server


def shell(folder: Path, server: KfpServer, script: str, *arguments: str, shell: str = "bash") -> tuple[int, str]:
    """The exit code of a script, and what it said, in an environment like the one its workflow gives it."""
    given = {
        "KFP_ENDPOINT": server.url,
        "COTRAIN_ROOT": str(folder / "runs"),
        "COTRAIN_IMAGE": "cotrain:1",
        "COTRAIN_POLL_S": "0.05",
        "SPEC": "job.yaml",
    }
    given |= {"KFP_NAMESPACE": "", "KFP_TOKEN": "", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    # Tekton runs a script as it is; the others end it with the first command that fails
    command = [shell, *([] if script.startswith("#!") else ["-e"]), "-c", script, "script", *arguments]
    ran = subprocess.run(command, cwd=folder, env=environment(folder, given), capture_output=True, text=True, timeout=120, check=False)
    return ran.returncode, ran.stdout + ran.stderr


def test_two_workflows_have_one_script():
    """So that it is enough to run one of them."""
    (github,), (gitlab,) = ([s for s in all_scripts(ROOT / "ci" / file) if "retrain" in s] for file in ("github.yml", "gitlab.yml"))
    assert github.split() == gitlab.split()


@pytest.mark.parametrize(("file", "shell_"), [("gitlab.yml", "bash"), ("tekton.yaml", "sh")], ids=["gitlab", "tekton"])
def test_a_workflow_ends_as_the_gate_says_and_keeps_the_verdict(file, shell_, folder, server):
    (script,) = [script for script in all_scripts(ROOT / "ci" / file) if "cotrain retrain" in script]
    script = script.replace("$(results.verdict.path)", "result").replace("/tmp/verdict.txt", "verdict.txt")
    code, said = shell(folder, server, script, shell=shell_)
    assert code == 3, said
    assert "a gate said no" in said
    assert "submitted: " in (folder / "verdict.txt").read_text()
    if file == "tekton.yaml":
        assert (folder / "result").read_text()
    assert len(server.runs) == 1


def test_the_recurring_run_is_made_and_made_again(folder, server):
    script = (ROOT / "ci" / "recurring-run.sh").read_text()
    code, said = shell(folder, server, script, "job.yaml", "nightly", shell="sh")
    assert code == 0, said
    (schedule,) = server.schedules.values()
    assert schedule["display_name"] == "nightly"
    assert schedule["trigger"]["cron_schedule"]["cron"] == "0 30 2 * * *"
    assert "nightly" in said
