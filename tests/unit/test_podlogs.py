"""Every line of a pod's log once: connections that are cut, seconds that come again, containers and pods that are replaced."""

from __future__ import annotations

import threading
import time

import pytest
from cluster_jobs import connect
from hypothesis import given, settings
from hypothesis import strategies as st
from kube_server import serving

from components import podlogs, watching
from components.podlogs import Position, Reader, chosen_nodes


def log(*stamps):
    """Lines with these nanoseconds after a whole hour, numbered."""
    return [f"2026-11-21T10:{ns // (60 * 10**9):02d}:{ns // 10**9 % 60:02d}.{ns % 10**9:09d}Z line {n}" for n, ns in enumerate(stamps)]


@given(
    stamps=st.lists(st.integers(0, 4 * 10**9), min_size=1, max_size=40).map(sorted),
    cuts=st.lists(st.integers(0, 12), max_size=30),
)
@settings(max_examples=200, deadline=None)
def test_a_log_that_is_cut_anywhere_is_said_once_and_whole(stamps, cuts):
    """The server resumes at a whole second: lines of that second come again, some with the very same stamp."""
    lines = log(*[ns // 10**8 * 10**8 for ns in stamps])  # many share a stamp
    position, said = Position(), []
    for cut in [*cuts, len(lines)]:
        since = position.since
        again = [line for line in lines if since is None or line[:19] >= since[:19]]
        said += list(position.new(again[: cut + len(said) if cut < len(lines) else None]))
    assert said == [f"line {n}" for n in range(len(lines))]


@pytest.mark.parametrize("zone", ["Z", "+02:00"])
def test_stamps_of_any_zone_and_precision_are_understood(zone):
    position = Position()
    assert list(position.new([f"2026-11-21T10:00:01.5{zone} a", f"2026-11-21T10:00:01.52{zone} b"])) == ["a", "b"]
    assert position.since == ("2026-11-21T10:00:01Z" if zone == "Z" else "2026-11-21T08:00:01Z")
    again = [f"2026-11-21T10:00:01.5{zone} a", f"2026-11-21T10:00:01.52{zone} b", f"2026-11-21T10:00:01.520000001{zone} c"]
    assert list(position.new(again)) == ["c"]


def test_a_clock_that_goes_back_loses_nothing():
    position = Position()
    assert len(list(position.new(log(5 * 10**9, 2 * 10**9, 3 * 10**9)))) == 3


def test_what_the_container_runtime_says_without_a_stamp_is_said():
    assert list(Position().new(["failed to open the log file", *log(1)])) == ["failed to open the log file", "line 0"]


@pytest.fixture
def kube(monkeypatch):
    monkeypatch.setattr(podlogs, "PAUSE_S", 0.02)
    monkeypatch.setattr(watching, "PAUSE_S", 0.02)
    with serving() as server:
        server.put("pods", {"metadata": {"name": "p"}})
        yield server


@pytest.fixture
def read(kube, tmp_path, monkeypatch):
    """Read the log of the pod in a thread; `state` is what is known of its container."""
    cluster = connect(kube, tmp_path, monkeypatch)
    state, said = [0, False], []
    reader = Reader(cluster.log("p", "node"), lambda: (state[0], state[1]), said.append)
    thread = threading.Thread(target=reader.run, daemon=True)

    def end(with_container=True):
        state[1] = with_container
        with kube.changed:  # the server ends a log with its container
            kube.open_logs.clear()
            kube.changed.notify_all()
        thread.join(60)
        assert not thread.is_alive()

    def start():
        thread.start()
        return state, said, end

    yield start
    end()


def finish(said, end, count):
    until(lambda: len(said) >= count)
    end()


def until(true):
    late = time.monotonic() + 60
    while not true() and time.monotonic() < late:
        time.sleep(0.01)


def test_a_connection_that_is_cut_within_lines_repeats_and_loses_nothing(kube, read):
    kube.logs["p"] = "\n".join(log(*[n * 3 * 10**8 for n in range(40)])) + "\n"
    kube.open_logs.add("p")
    kube.cut_logs_after = 333
    _, said, end = read()
    kube.fail("GET", "/p/log", 503, 2)
    kube.fail("GET", "/p/log", 0, 2)
    finish(said, end, 40)
    assert said == [f"line {n}" for n in range(40)]


def test_a_container_that_has_not_started_is_waited_for(kube, read):
    _, said, end = read()
    until(lambda: any("/p/log" in path for _, path in kube.requests))
    kube.logs["p"] = "\n".join(log(1, 2)) + "\n"
    finish(said, end, 2)
    assert said == ["line 0", "line 1"]


def test_a_container_that_is_started_anew_is_read_to_its_end_and_then_the_next(kube, read):
    first, second = log(1, 2, 3), [line.replace("line", "again") for line in log(4 * 10**9, 5 * 10**9)]
    kube.logs["p"] = "\n".join(first[:2]) + "\n"
    state, said, end = read()
    until(lambda: len(said) == 2)
    with kube.changed:  # it says one more line, dies and is started anew while nobody reads
        kube.logs["p/previous"] = "\n".join(first) + "\n"
        kube.logs["p"] = "\n".join(second) + "\n"
        state[0] = 1
    finish(said, end, 5)
    assert said == ["line 0", "line 1", "line 2", "again 0", "again 1"]


def test_a_last_line_without_an_end_is_said_when_the_container_has_ended(kube, read):
    kube.logs["p"] = log(1)[0] + "\n" + log(1, 2)[1]
    _, said, end = read()
    finish(said, end, 1)
    assert said == ["line 0", "line 1"]


def test_a_pod_that_is_gone_ends_the_reading(kube, read):
    kube.remove("pods", "p")
    _, said, end = read()
    end(with_container=False)
    assert said == []


@pytest.mark.parametrize(
    ("ranks", "nodes"),
    [("0", [0]), ("all", [0, 1, 2, 3]), ("8", [0, 1]), ("", [0]), ("8-23", [0, 1, 2]), ("9, 31", [0, 1, 3]), ("999", [0])],
)
def test_ranks_are_asked_for_and_nodes_are_followed(ranks, nodes):
    assert chosen_nodes(ranks, 4, 8) == nodes


def test_ranks_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError):
        chosen_nodes("first", 4, 8)
