"""Tests of cached objects: never older than a written or read version, and valid for a limited time."""

from __future__ import annotations

from typing import Any

from tidemill_operator.actuators.kubernetes.api import CONFIG_MAP, PIPELINE, SECRET
from tidemill_operator.actuators.kubernetes.cache import ObjectCache
from tidemill_operator.plan.render import object_metadata

NS = "shop"


def item(name: str, version: int, *, uid: str = "", owner: str = "o1", **members: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": NS, "uid": uid or f"uid-{name}", "resourceVersion": str(version)}
    return {"kind": "ConfigMap", "metadata": {**metadata, "labels": {object_metadata.OWNER_UID: owner}}, **members}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_older_version_changes_nothing() -> None:
    cache = ObjectCache([CONFIG_MAP])
    cache.store(CONFIG_MAP, item("a", 10, data={"x": "new"}))
    cache.store(CONFIG_MAP, item("a", 9, data={"x": "old"}))
    cache.store(CONFIG_MAP, item("a", 8), deleted=True)
    cached = cache.get(CONFIG_MAP, NS, "a")
    assert cached is not None
    assert cached["data"] == {"x": "new"}
    cache.store(CONFIG_MAP, item("a", 11), deleted=True)
    assert cache.get(CONFIG_MAP, NS, "a") is None


def test_a_discarded_object_is_unknown() -> None:
    cache = ObjectCache([CONFIG_MAP])
    cache.store(CONFIG_MAP, item("a", 10))
    cache.discard(CONFIG_MAP, NS, "a")
    assert cache.get(CONFIG_MAP, NS, "a") is None


def test_objects_are_found_by_their_owner_and_shared_ones_too() -> None:
    cache = ObjectCache([CONFIG_MAP])
    for name, owner in (("a", "o1"), ("b", "o2"), ("c", object_metadata.SHARED)):
        cache.store(CONFIG_MAP, item(name, 10, owner=owner))
    owned_objects, unknown = cache.list_owned(CONFIG_MAP, NS, ("o1", object_metadata.SHARED))
    assert (sorted(each["metadata"]["name"] for each in owned_objects), unknown) == (["a", "c"], [])


def test_a_list_corrects_changes_that_the_watch_missed() -> None:
    """Deleted objects are removed. Changed and new objects are known only by name. Later writes are kept."""
    cache = ObjectCache([CONFIG_MAP])
    for name, version in (("same", 10), ("changed", 10), ("gone", 10), ("written since", 21)):
        cache.store(CONFIG_MAP, item(name, version))
    cache.store_list(CONFIG_MAP, None, [item("same", 10), item("changed", 15), item("new", 20)], "20")
    owned_objects, unknown = cache.list_owned(CONFIG_MAP, NS, ("o1",))
    assert sorted(each["metadata"]["name"] for each in owned_objects) == ["same", "written since"]
    assert sorted(unknown) == ["changed", "new"]
    assert cache.get(CONFIG_MAP, NS, "changed") is None


def test_a_list_of_a_namespace_changes_no_other_namespace() -> None:
    cache = ObjectCache([CONFIG_MAP])
    cache.store(CONFIG_MAP, item("a", 10))
    cache.store_list(CONFIG_MAP, "other", [], "20")
    assert cache.get(CONFIG_MAP, NS, "a") is not None


def test_a_list_is_valid_for_a_limited_time() -> None:
    clock = Clock()
    cache = ObjectCache([CONFIG_MAP], clock=clock)
    assert not cache.is_complete(CONFIG_MAP, None, seconds=90)
    cache.store_list(CONFIG_MAP, None, [], "20")
    assert cache.is_complete(CONFIG_MAP, None, seconds=90)
    assert not cache.is_complete(CONFIG_MAP, NS, seconds=90)
    clock.now += 91
    assert not cache.is_complete(CONFIG_MAP, None, seconds=90)


def test_an_object_without_a_watch_is_valid_for_a_limited_time() -> None:
    clock = Clock()
    cache = ObjectCache([CONFIG_MAP], clock=clock)
    cache.store(SECRET, item("s", 10))
    clock.now += 599
    assert cache.get(SECRET, NS, "s", seconds=600) is not None
    clock.now += 2
    assert cache.get(SECRET, NS, "s", seconds=600) is None
    cache.store(SECRET, item("s", 10))  # read again, and unchanged
    assert cache.get(SECRET, NS, "s", seconds=600) is not None


def test_names_by_uid_include_names_that_only_a_list_had() -> None:
    cache = ObjectCache([PIPELINE])
    cache.store(PIPELINE, item("a", 10))
    cache.store_list(PIPELINE, None, [item("a", 10), item("b", 12)], "20")
    assert cache.names(PIPELINE, NS) == {"uid-a": "a", "uid-b": "b"}
