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


class ConfigFolder:
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
def configs(tmp_path: Path) -> ConfigFolder:
    return ConfigFolder(tmp_path)


def test_configs_are_read_in_the_order_of_their_names(configs: ConfigFolder) -> None:
    for name in ("b", "a", "c"):
        configs.write(name)
    assert [config.name for config in configs.directory.all()] == ["a", "b", "c"]
    assert configs.directory.get("nobody") is None
    assert configs.directory.faults == {}


def test_added_changed_and_removed_files_are_noticed_after_a_second(configs: ConfigFolder) -> None:
    configs.write("a")
    assert configs.generations() == {"a": 1}
    configs.write("a", generation=2)
    configs.write("b")
    configs.wait(0.9)
    assert configs.generations() == {"a": 1}
    configs.wait(0.1)
    assert configs.generations() == {"a": 2, "b": 1}
    (configs.root / "a.json").unlink()
    configs.wait()
    assert configs.generations() == {"b": 1}
    assert configs.directory.get("a") is None


def test_an_unchanged_file_keeps_its_object(configs: ConfigFolder) -> None:
    configs.write("a")
    configs.write("b")
    before = configs.directory.get("a")
    configs.write("b", generation=2)
    configs.wait()
    assert configs.directory.get("a") is before
    assert configs.generations() == {"a": 1, "b": 2}


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
def test_an_invalid_file_keeps_the_last_valid_config_and_is_a_fault(
    configs: ConfigFolder, content: str, fault: str
) -> None:
    configs.write("a")
    good = configs.directory.get("a")
    configs.write("a", content)
    configs.write("never", content)
    configs.wait()
    assert configs.directory.get("a") is good
    assert configs.directory.get("never") is None
    assert set(configs.directory.faults) == {"a", "never"}
    assert fault in configs.directory.faults["a"]
    configs.write("a", generation=3)
    (configs.root / "never.json").unlink()
    configs.wait()
    assert (configs.generations(), configs.directory.faults) == ({"a": 3}, {})


def test_a_missing_directory_is_a_fault_until_it_appears(tmp_path: Path) -> None:
    configs = ConfigFolder(tmp_path / "later")
    assert configs.directory.all() == ()
    assert "cannot be read" in configs.directory.faults["."]
    configs.root.mkdir()
    configs.write("a")
    configs.wait()
    assert (configs.generations(), configs.directory.faults) == ({"a": 1}, {})


def test_pipelines_are_kept_while_their_directory_is_missing(configs: ConfigFolder) -> None:
    configs.write("a")
    assert configs.generations() == {"a": 1}
    shutil.rmtree(configs.root)
    configs.wait()
    assert configs.generations() == {"a": 1}
    assert set(configs.directory.faults) == {"."}
    configs.root.mkdir()
    configs.wait()
    assert (configs.generations(), configs.directory.faults) == ({}, {})


def test_config_maps_are_read_through_symbolic_links(configs: ConfigFolder) -> None:
    """Kubernetes replaces the link `..data`, and the files are links into it."""
    for generation in (1, 2):
        version = configs.root / f"..version{generation}"
        version.mkdir()
        (version / "a.json").write_text(text("a", generation))
        link = configs.root / "..new"
        link.symlink_to(version.name)
        os.replace(link, configs.root / "..data")
        if generation == 1:
            (configs.root / "a.json").symlink_to("..data/a.json")
        assert configs.generations() == {"a": generation}
        configs.wait()


def test_files_that_are_no_configs_are_ignored(configs: ConfigFolder) -> None:
    for name in (".hidden.json", "a.json.tmp", "notes.txt"):
        (configs.root / name).write_text("x")
    assert (configs.directory.all(), configs.directory.faults) == ((), {})


def test_concurrent_readers_never_see_half_of_a_change(configs: ConfigFolder) -> None:
    configs.write("a")
    configs.write("b")
    stop = threading.Event()
    states: set[tuple[tuple[str, int], ...]] = set()
    errors: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                states.add(tuple(configs.generations().items()))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for generation in range(2, 40):
        configs.write("a", generation=generation)
        configs.wait()
    stop.set()
    for thread in threads:
        thread.join(10)
    assert errors == []
    assert len(states) > 1
    assert all(dict(state).keys() == {"a", "b"} and dict(state)["b"] == 1 for state in states)
    configs.wait()
    assert configs.generations() == {"a": 39, "b": 1}
