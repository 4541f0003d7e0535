"""Copies of what watches tell: never older than what was written or read, and never believed for good."""

from __future__ import annotations

from typing import Any

from tidemill_operator.actuators.kubernetes.api import CONFIG_MAP, PIPELINE, SECRET
from tidemill_operator.actuators.kubernetes.mirror import Mirror
from tidemill_operator.plan.render import marks

NS = "shop"


def item(name: str, version: int, *, uid: str = "", owner: str = "o1", **members: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": NS, "uid": uid or f"uid-{name}", "resourceVersion": str(version)}
    return {"kind": "ConfigMap", "metadata": {**metadata, "labels": {marks.OWNER_UID: owner}}, **members}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_older_version_changes_nothing() -> None:
    mirror = Mirror([CONFIG_MAP])
    mirror.saw(CONFIG_MAP, item("a", 10, data={"x": "new"}))
    mirror.saw(CONFIG_MAP, item("a", 9, data={"x": "old"}))
    mirror.saw(CONFIG_MAP, item("a", 8), gone=True)
    found = mirror.get(CONFIG_MAP, NS, "a")
    assert found is not None
    assert found["data"] == {"x": "new"}
    mirror.saw(CONFIG_MAP, item("a", 11), gone=True)
    assert mirror.get(CONFIG_MAP, NS, "a") is None


def test_what_is_in_doubt_is_not_known() -> None:
    mirror = Mirror([CONFIG_MAP])
    mirror.saw(CONFIG_MAP, item("a", 10))
    mirror.doubt(CONFIG_MAP, NS, "a")
    assert mirror.get(CONFIG_MAP, NS, "a") is None


def test_objects_are_found_by_their_owner_and_shared_ones_too() -> None:
    mirror = Mirror([CONFIG_MAP])
    for name, owner in (("a", "o1"), ("b", "o2"), ("c", marks.SHARED)):
        mirror.saw(CONFIG_MAP, item(name, 10, owner=owner))
    found, unknown = mirror.owned(CONFIG_MAP, NS, ("o1", marks.SHARED))
    assert (sorted(one["metadata"]["name"] for one in found), unknown) == (["a", "c"], [])


def test_a_list_finds_what_the_watch_has_missed() -> None:
    """Gone ones go, changed and new ones are known by name only, and what was written after the list stays."""
    mirror = Mirror([CONFIG_MAP])
    for name, version in (("same", 10), ("changed", 10), ("gone", 10), ("made since", 21)):
        mirror.saw(CONFIG_MAP, item(name, version))
    mirror.listed(CONFIG_MAP, None, [item("same", 10), item("changed", 15), item("new", 20)], "20")
    found, unknown = mirror.owned(CONFIG_MAP, NS, ("o1",))
    assert sorted(one["metadata"]["name"] for one in found) == ["made since", "same"]
    assert sorted(unknown) == ["changed", "new"]
    assert mirror.get(CONFIG_MAP, NS, "changed") is None


def test_a_list_of_a_namespace_says_nothing_of_others() -> None:
    mirror = Mirror([CONFIG_MAP])
    mirror.saw(CONFIG_MAP, item("a", 10))
    mirror.listed(CONFIG_MAP, "other", [], "20")
    assert mirror.get(CONFIG_MAP, NS, "a") is not None


def test_a_list_is_good_for_a_while() -> None:
    clock = Clock()
    mirror = Mirror([CONFIG_MAP], clock=clock)
    assert not mirror.is_whole(CONFIG_MAP, None, seconds=90)
    mirror.listed(CONFIG_MAP, None, [], "20")
    assert mirror.is_whole(CONFIG_MAP, None, seconds=90)
    assert not mirror.is_whole(CONFIG_MAP, NS, seconds=90)
    clock.now += 91
    assert not mirror.is_whole(CONFIG_MAP, None, seconds=90)


def test_what_is_not_watched_is_believed_for_a_while() -> None:
    clock = Clock()
    mirror = Mirror([CONFIG_MAP], clock=clock)
    mirror.saw(SECRET, item("s", 10))
    clock.now += 599
    assert mirror.get(SECRET, NS, "s", seconds=600) is not None
    clock.now += 2
    assert mirror.get(SECRET, NS, "s", seconds=600) is None
    mirror.saw(SECRET, item("s", 10))  # read again, and unchanged
    assert mirror.get(SECRET, NS, "s", seconds=600) is not None


def test_names_by_uid_include_those_that_only_a_list_told_of() -> None:
    mirror = Mirror([PIPELINE])
    mirror.saw(PIPELINE, item("a", 10))
    mirror.listed(PIPELINE, None, [item("a", 10), item("b", 12)], "20")
    assert mirror.names(PIPELINE, NS) == {"uid-a": "a", "uid-b": "b"}
