"""Tests on a cluster: see README.md beside this file. Without `make cluster-test` they are skipped, with the reason."""

from __future__ import annotations

import pytest
from cluster_place import Place, place
from cluster_settings import Settings, why_not


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_not()
    for item in items:
        if "tests/cluster/" in item.path.as_posix():
            item.add_marker(pytest.mark.timeout(0))  # each waits as long as COTRAIN_TEST_WAIT_S says
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def there(tmp_path_factory: pytest.TempPathFactory):
    """The namespace of this run."""
    with place(Settings.read(), tmp_path_factory.mktemp("cluster")) as found:
        yield found


@pytest.fixture(params=["trainjob", "job"])
def launcher(request: pytest.FixtureRequest, there: Place) -> str:
    """Each launcher that the cluster has."""
    return needs(there, request.param)


def needs(there: Place, launcher: str) -> str:
    if launcher == "trainjob" and not has_api(there, "trainer.kubeflow.org"):
        pytest.skip("the cluster has no Kubeflow Trainer")
    return launcher


def has_api(there: Place, group: str) -> bool:
    return any(found["name"] == group for found in there.send("GET", "/apis")["groups"])


@pytest.fixture
def trainjob(there: Place) -> str:
    return needs(there, "trainjob")


@pytest.fixture
def kueue(there: Place) -> None:
    if not has_api(there, "kueue.x-k8s.io"):
        pytest.skip("the cluster has no Kueue")
