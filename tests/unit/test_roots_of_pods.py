"""Where results are kept has to be where pods can follow."""

from __future__ import annotations

import pytest
import training_job

from components.checks import _root
from components.manifests import render


@pytest.mark.parametrize("launcher", ["trainjob", "job"])
def test_a_folder_beside_the_launcher_is_refused_before_anything_is_made(launcher):
    def told(root: str) -> list[str]:
        return [str(fault) for fault in _root(render(training_job.request(), training_job.TARGET.with_(root=root), launcher)[-1])]

    assert told("s3://lake/cotrain") == told("/mnt/lake") == told("file:///mnt/lake") == []
    (fault,) = told("runs")
    assert fault.startswith("--root: 'runs' is a folder of this machine")
    assert "s3://bucket/prefix" in fault
