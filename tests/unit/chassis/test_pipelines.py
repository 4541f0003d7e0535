"""Tests of the directory of pipeline configs: when changes are read, and which faults are reported."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from tidemill_chassis.pipelines import PipelineDirectory


def text(name: str, generation: int = 1) -> str:
    spec: dict[str, Any] = {
        "source": {"fields": [{"name": "v", "type": "number"}]},
        "aggregations": [
            {"name": "a", "window": {"type": "tumbling", "size": "1m"}, "metrics": [{"name": "n", "function": "count"}]}
        ],
    }
    return json.dumps(
        {"namespace": "default", "name": name, "generation": generation, "spec": spec, "aggregations": [{"name": "a"}]}
    )


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class World:
    def __init__(self, root: Path) -> None:
        self.root, self.time = root, Time()
        self.directory = PipelineDirectory(root, clock=self.time)

    def write(self, name: str, content: str | None = None, generation: int = 1) -> None:
        new = self.root / f".{name}.new"
        new.write_text(text(name, generation) if content is None else content)
        os.replace(new, self.root / f"{name}.json")

    def wait(self, seconds: float = 1.0) -> None:
        self.time.now += seconds

    def generations(self) -> dict[str, int]:
        return {config.name: config.generation for config in self.directory.all()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_configs_are_read_in_the_order_of_their_names(world: World) -> None:
    for name in ("b", "a", "c"):
        world.write(name)
    assert [config.name for config in world.directory.all()] == ["a", "b", "c"]
    assert world.directory.get("nobody") is None
    assert world.directory.faults == {}


def test_added_changed_and_removed_files_are_noticed_after_a_second(world: World) -> None:
    world.write("a")
    assert world.generations() == {"a": 1}
    world.write("a", generation=2)
    world.write("b")
    world.wait(0.9)
    assert world.generations() == {"a": 1}
    world.wait(0.1)
    assert world.generations() == {"a": 2, "b": 1}
    (world.root / "a.json").unlink()
    world.wait()
    assert world.generations() == {"b": 1}
    assert world.directory.get("a") is None


def test_an_unchanged_file_keeps_its_object(world: World) -> None:
    world.write("a")
    world.write("b")
    before = world.directory.get("a")
    world.write("b", generation=2)
    world.wait()
    assert world.directory.get("a") is before
    assert world.generations() == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "Invalid JSON"),
        ("", "Invalid JSON"),
        ('{"namespace": "default"}', "name"),
        (text("other"), "'other'"),
        ("\udcff".encode("utf-8", "surrogateescape").decode("latin-1"), "Invalid JSON"),
    ],
    ids=["cut off", "empty", "incomplete", "config of another pipeline", "not text"],
)
def test_an_invalid_file_keeps_the_last_valid_config_and_is_a_fault(world: World, content: str, fault: str) -> None:
    world.write("a")
    good = world.directory.get("a")
    world.write("a", content)
    world.write("never", content)
    world.wait()
    assert world.directory.get("a") is good
    assert world.directory.get("never") is None
    assert set(world.directory.faults) == {"a", "never"}
    assert fault in world.directory.faults["a"]
    world.write("a", generation=3)
    (world.root / "never.json").unlink()
    world.wait()
    assert (world.generations(), world.directory.faults) == ({"a": 3}, {})


def test_a_missing_directory_is_a_fault_until_it_appears(tmp_path: Path) -> None:
    world = World(tmp_path / "later")
    assert world.directory.all() == ()
    assert "cannot be read" in world.directory.faults["."]
    world.root.mkdir()
    world.write("a")
    world.wait()
    assert (world.generations(), world.directory.faults) == ({"a": 1}, {})


def test_pipelines_are_kept_while_their_directory_is_missing(world: World) -> None:
    world.write("a")
    assert world.generations() == {"a": 1}
    shutil.rmtree(world.root)
    world.wait()
    assert world.generations() == {"a": 1}
    assert set(world.directory.faults) == {"."}
    world.root.mkdir()
    world.wait()
    assert (world.generations(), world.directory.faults) == ({}, {})


def test_config_maps_are_read_through_symbolic_links(world: World) -> None:
    """Kubernetes replaces the link `..data`, and the files are links into it."""
    for generation in (1, 2):
        version = world.root / f"..version{generation}"
        version.mkdir()
        (version / "a.json").write_text(text("a", generation))
        link = world.root / "..new"
        link.symlink_to(version.name)
        os.replace(link, world.root / "..data")
        if generation == 1:
            (world.root / "a.json").symlink_to("..data/a.json")
        assert world.generations() == {"a": generation}
        world.wait()


def test_files_that_are_no_configs_are_ignored(world: World) -> None:
    for name in (".hidden.json", "a.json.tmp", "notes.txt"):
        (world.root / name).write_text("x")
    assert (world.directory.all(), world.directory.faults) == ((), {})


def test_concurrent_readers_never_see_half_of_a_change(world: World) -> None:
    world.write("a")
    world.write("b")
    stop = threading.Event()
    seen: set[tuple[tuple[str, int], ...]] = set()
    errors: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                seen.add(tuple(world.generations().items()))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for generation in range(2, 40):
        world.write("a", generation=generation)
        world.wait()
    stop.set()
    for thread in threads:
        thread.join(10)
    assert errors == []
    assert len(seen) > 1
    assert all(dict(state).keys() == {"a", "b"} and dict(state)["b"] == 1 for state in seen)
    world.wait()
    assert world.generations() == {"a": 39, "b": 1}
