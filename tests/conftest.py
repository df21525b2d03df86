"""What every test shares: a machine without the user's own settings, and threads that don't fight over two cores.

And what keeps them apart: each starts with the same path, environment and random numbers, whichever came before it.
"""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["s3_server"]

# a machine may be slow, and a change may not fail for what it did not touch; --hypothesis-profile=default looks for more
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")

# before anything imports torch
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


SETTINGS = ("AWS_", "COTRAIN_", "KFP_", "KF_PIPELINES_")
FOR_TESTS = ("COTRAIN_TEST_", "COTRAIN_CLUSTER_TEST", "COTRAIN_CHROMIUM", "COTRAIN_WRITE_GOLDEN")


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory):
    """Nothing is read from, or left in, the home folder or the environment of whoever runs the tests; least of all credentials."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for name in [name for name in os.environ if name.startswith(SETTINGS) and not name.startswith(FOR_TESTS)]:
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


def pytest_runtest_setup() -> None:
    same_numbers()


def pytest_runtest_call() -> None:
    same_numbers()


def same_numbers() -> None:
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def apart():
    """A document's own functions are looked for along the path, and cotrain asks the environment for much."""
    path, said = list(sys.path), settings_of_cotrain()
    yield
    sys.path[:] = path
    assert settings_of_cotrain() == said, "the next test would find other settings"


def settings_of_cotrain() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("COTRAIN_")}
