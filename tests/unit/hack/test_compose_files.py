"""Tests that the compose files load in Compose 1 and 2, and that hack/compose reads them like Compose."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from compose.files import Mount, load
from compose.stage import Stage

ROOT = Path(__file__).resolve().parents[3]
FILES = ("docker-compose.yaml", "docker-compose.dev.yaml")
PROGRAMS = (["docker-compose"], ["docker", "compose"])


@pytest.mark.parametrize("name", FILES)
def test_a_file_loads_and_its_mounted_paths_exist(name: str) -> None:
    """`load` refuses keys that Compose 1 does not know."""
    services = load(ROOT / name, {})
    for service in services.values():
        assert service.image.partition(":")[2], "an image has no version"
        for mount in service.mounts:
            assert mount.is_volume or (ROOT / mount.source).exists(), f"{service.name}: {mount.source}"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("program", PROGRAMS, ids=" ".join)
def test_the_installed_compose_accepts_a_file(name: str, program: list[str]) -> None:
    if (
        not shutil.which(program[0])
        or subprocess.run([*program, "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip(f"{' '.join(program)} is not installed")
    done = subprocess.run(
        [*program, "-f", str(ROOT / name), "config", "--quiet"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_files_share_no_service() -> None:
    """Both files are projects of the same folder, so one would replace the containers of the other."""
    first, second = (set(load(ROOT / name, {})) for name in FILES)
    assert not first & second


def write(folder: Path, text: str) -> Path:
    """Write a compose file, and return its path."""
    file = folder / "compose.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nservices: {}\n", "name: Compose 1 refuses this key"),
        ("services: {a: {image: x, deploy: {}}}\n", "services.a.deploy: unknown key; add it to hack/compose"),
        ("services: {a: {image: x, environment: {N: 1}}}\n", "services.a.environment.N: 1 is not a string; quote it"),
        ("services: {a: {image: x, volumes: ['data:/d']}}\n", "services.a: volume data is not declared in volumes"),
        ("services: {a: {image: x, depends_on: [b]}}\n", "services.a.depends_on: there is no service b"),
    ],
)
def test_a_fault_in_a_file_is_refused_with_its_path(tmp_path: Path, text: str, message: str) -> None:
    """If `load` ignored a key, `make compose-check` would check less than the whole file."""
    with pytest.raises(ValueError, match=r"compose\.yaml") as raised:
        load(write(tmp_path, text), {})
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("written", "environ", "meant"),
    [
        ("${A:-x}", {}, "x"),
        ("${A:-x}", {"A": ""}, "x"),
        ("${A-x}", {"A": ""}, ""),
        ("${A:-x}/$A", {"A": "y"}, "y/y"),
        ("$${A}", {"A": "y"}, "${A}"),
        ("${A}", {}, ""),
    ],
)
def test_variables_are_substituted_as_compose_does_it(
    tmp_path: Path, written: str, environ: dict[str, str], meant: str
) -> None:
    file = write(tmp_path, f"services: {{a: {{image: x, environment: {{V: '{written}'}}}}}}\n")
    assert load(file, environ)["a"].environment["V"] == meant


def test_hosts_ports_and_paths_of_a_container_are_replaced(tmp_path: Path) -> None:
    """Host names become addresses, and paths are below the folder of the run. Similar text is unchanged."""
    services = load(ROOT / "docker-compose.yaml", {"PIPELINES": str(tmp_path)})
    stage = Stage.of(services, ROOT, tmp_path)
    at, tidemill, prometheus = stage.addresses, services["tidemill"], services["prometheus"]
    assert tidemill.mounts[0] == Mount(str(tmp_path), "/pipelines", read_only=True)
    assert stage.text(tidemill, "1@kafka-1:9092,kafka-11:9092") == f"1@{at['kafka-1']}:9092,kafka-11:9092"
    assert stage.text(services["kafka-1"], "PLAINTEXT://:9092") == f"PLAINTEXT://{at['kafka-1']}:9092"
    assert stage.text(prometheus, '["localhost:9090"]') == f'["{at["prometheus"]}:9090"]'
    assert stage.text(prometheus, "/run/tidemill/targets.json") == f"{tmp_path}/volumes/targets/targets.json"
    rules = stage.path(prometheus, "/etc/prometheus-rules")
    assert stage.text(prometheus, "[/etc/prometheus-rules/*.yaml]") == f"[{rules}/*.yaml]"
    assert stage.path(prometheus, "/etc/prometheus-rules/alerts.yaml") == rules / "alerts.yaml"
    assert stage.path(tidemill, "/run/tidemill") == stage.path(prometheus, "/run/tidemill")
    assert stage.text(prometheus, "a/prometheus /prometheus-2 http://x/prometheus") == (
        "a/prometheus /prometheus-2 http://x/prometheus"
    )
    assert stage.text(tidemill, "(8080, 8081)") == f"({stage.ports[8080]}, {stage.ports[8081]})"
