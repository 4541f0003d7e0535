"""Tests of copies of watched objects: never older than a written or read version, and valid for a limited time."""

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
    copied = mirror.get(CONFIG_MAP, NS, "a")
    assert copied is not None
    assert copied["data"] == {"x": "new"}
    mirror.saw(CONFIG_MAP, item("a", 11), gone=True)
    assert mirror.get(CONFIG_MAP, NS, "a") is None


def test_an_object_in_doubt_is_unknown() -> None:
    mirror = Mirror([CONFIG_MAP])
    mirror.saw(CONFIG_MAP, item("a", 10))
    mirror.doubt(CONFIG_MAP, NS, "a")
    assert mirror.get(CONFIG_MAP, NS, "a") is None


def test_objects_are_found_by_their_owner_and_shared_ones_too() -> None:
    mirror = Mirror([CONFIG_MAP])
    for name, owner in (("a", "o1"), ("b", "o2"), ("c", marks.SHARED)):
        mirror.saw(CONFIG_MAP, item(name, 10, owner=owner))
    owned_objects, unknown = mirror.owned(CONFIG_MAP, NS, ("o1", marks.SHARED))
    assert (sorted(each["metadata"]["name"] for each in owned_objects), unknown) == (["a", "c"], [])


def test_a_list_corrects_changes_that_the_watch_missed() -> None:
    """Deleted objects are removed. Changed and new objects are known only by name. Later writes are kept."""
    mirror = Mirror([CONFIG_MAP])
    for name, version in (("same", 10), ("changed", 10), ("gone", 10), ("written since", 21)):
        mirror.saw(CONFIG_MAP, item(name, version))
    mirror.listed(CONFIG_MAP, None, [item("same", 10), item("changed", 15), item("new", 20)], "20")
    owned_objects, unknown = mirror.owned(CONFIG_MAP, NS, ("o1",))
    assert sorted(each["metadata"]["name"] for each in owned_objects) == ["same", "written since"]
    assert sorted(unknown) == ["changed", "new"]
    assert mirror.get(CONFIG_MAP, NS, "changed") is None


def test_a_list_of_a_namespace_changes_no_other_namespace() -> None:
    mirror = Mirror([CONFIG_MAP])
    mirror.saw(CONFIG_MAP, item("a", 10))
    mirror.listed(CONFIG_MAP, "other", [], "20")
    assert mirror.get(CONFIG_MAP, NS, "a") is not None


def test_a_list_is_valid_for_a_limited_time() -> None:
    clock = Clock()
    mirror = Mirror([CONFIG_MAP], clock=clock)
    assert not mirror.is_whole(CONFIG_MAP, None, seconds=90)
    mirror.listed(CONFIG_MAP, None, [], "20")
    assert mirror.is_whole(CONFIG_MAP, None, seconds=90)
    assert not mirror.is_whole(CONFIG_MAP, NS, seconds=90)
    clock.now += 91
    assert not mirror.is_whole(CONFIG_MAP, None, seconds=90)


def test_an_object_without_a_watch_is_valid_for_a_limited_time() -> None:
    clock = Clock()
    mirror = Mirror([CONFIG_MAP], clock=clock)
    mirror.saw(SECRET, item("s", 10))
    clock.now += 599
    assert mirror.get(SECRET, NS, "s", seconds=600) is not None
    clock.now += 2
    assert mirror.get(SECRET, NS, "s", seconds=600) is None
    mirror.saw(SECRET, item("s", 10))  # read again, and unchanged
    assert mirror.get(SECRET, NS, "s", seconds=600) is not None


def test_names_by_uid_include_names_that_only_a_list_had() -> None:
    mirror = Mirror([PIPELINE])
    mirror.saw(PIPELINE, item("a", 10))
    mirror.listed(PIPELINE, None, [item("a", 10), item("b", 12)], "20")
    assert mirror.names(PIPELINE, NS) == {"uid-a": "a", "uid-b": "b"}
