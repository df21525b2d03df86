"""Every change of a set of objects once, whatever happens to the watch."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components import watching
from components.watching import LISTED, Expired, Interrupted, changes


class Script:
    """A server with a history; watches break off as the script says, and the past is forgotten now and then."""

    def __init__(self, history, breaks):
        self.history, self.breaks, self.stop = history, list(breaks), threading.Event()
        self.at = 0

    def list(self):
        if self.breaks and self.breaks[0] == "unlisted":
            self.breaks.pop(0)
            raise Interrupted("503", after_s=0)
        there = {}
        for version, happened, uid in self.history[: self.at]:
            there[uid] = self._object(version, uid)
            if happened == "DELETED":
                del there[uid]
        return list(there.values()), str(self.at)

    def watch(self, version):
        start = int(version)
        how = self.breaks.pop(0) if self.breaks else "end"
        if how == "forgotten":
            self.at = min(self.at + 2, len(self.history))  # and meanwhile more has happened
            raise Expired
        for number, (_, happened, uid) in enumerate(self.history[start:], start):
            if isinstance(how, int) and number - start >= how:
                raise Interrupted("cut", after_s=0)
            self.at = max(self.at, number + 1)
            yield {"type": happened, "object": self._object(number + 1, uid)}
        if how == "bookmark":
            yield {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(len(self.history))}}}
        if not self.breaks:
            self.stop.set()

    @staticmethod
    def _object(version, uid):
        return {"metadata": {"uid": uid, "resourceVersion": str(version)}}


@st.composite
def histories(draw):
    there, told = set(), []
    for version in range(1, draw(st.integers(1, 20)) + 1):
        uid = draw(st.sampled_from("abc"))
        happened = draw(st.sampled_from(["MODIFIED", "DELETED"])) if uid in there else "ADDED"
        (there.discard if happened == "DELETED" else there.add)(uid)
        told.append((version, happened, uid))
    return told


@given(histories(), st.lists(st.one_of(st.integers(0, 4), st.sampled_from(["forgotten", "bookmark", "unlisted", "end"])), max_size=12))
@settings(max_examples=200, deadline=None)
def test_whatever_breaks_what_is_told_ends_as_things_are(history, breaks):
    server = Script(history, breaks)
    there, versions = {}, []
    for event in changes(server, server.stop):
        if event["type"] == LISTED:
            continue
        uid = event["object"]["metadata"]["uid"]
        if event["type"] == "DELETED":
            assert uid in there
            del there[uid]
        else:
            assert (event["type"] == "MODIFIED") == (uid in there)
            there[uid] = event["object"]
            versions.append(event["object"]["metadata"]["resourceVersion"])
    expected = {}
    for version, happened, uid in history:
        expected[uid] = str(version)
        if happened == "DELETED":
            del expected[uid]
    assert {uid: thing["metadata"]["resourceVersion"] for uid, thing in there.items()} == expected
    assert len(versions) == len(set(versions))  # nothing is told twice


def test_what_was_there_before_and_is_not_listed_is_told_as_deleted():
    server = Script([(1, "ADDED", "b")], [])
    known = {"a": Script._object(0, "a")}
    told = [(event["type"], event["object"].get("metadata", {}).get("uid")) for event in changes(server, server.stop, known)]
    assert told == [("DELETED", "a"), (LISTED, None), ("ADDED", "b")]


@pytest.mark.parametrize("asked", [None, 7.0])
def test_pauses_grow_are_never_in_step_and_are_as_the_server_asks(asked):
    class Stop:
        def __init__(self):
            self.waits = []

        def wait(self, seconds):
            self.waits.append(seconds)

    stop, pause_s = Stop(), watching.PAUSE_S
    for _ in range(12):
        pause_s = watching.rest(stop, pause_s, asked)
    assert pause_s == watching.LONGEST_PAUSE_S
    if asked:
        assert set(stop.waits) == {asked}
    else:
        assert stop.waits[0] <= watching.PAUSE_S and max(stop.waits) > 10 and len(set(stop.waits)) == 12
