"""Tests of the ports that the command line of `up` names."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidemill_operator.cli.main import main
from tidemill_operator.laptop.ports import WantedPorts
from tidemill_operator.laptop.servers import ServerError
from tidemill_operator.processes.ports import Ports

EXAMPLE = Path(__file__).parents[4] / "crds" / "examples" / "flights.yaml"


@pytest.fixture
def used_port() -> Iterator[int]:
    """Return a port on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield int(listening.getsockname()[1])


@pytest.mark.parametrize("component", ["ingest", "api"])
def test_up_refuses_a_named_port_that_another_process_has_before_it_starts_anything(
    component: str, used_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    assert main(["up", "-f", str(EXAMPLE), f"--data-dir={data}", f"--port-{component}={used_port}"]) == 1
    error = capsys.readouterr().err
    assert f"--port-{component} {used_port}: process {os.getpid()} (" in error
    assert f"write another --port-{component}" in error
    assert [path.name for path in data.iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("port", "expected"),
    [("99999", "'99999' is not a port"), ("-1", "'-1' is not a port"), ("http", "'http' is not a port")],
)
def test_an_invalid_port_is_refused_with_the_name_of_the_option(
    port: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["up", "-f", str(EXAMPLE), f"--data-dir={tmp_path}", f"--port-api={port}"])
    assert f"--port-api: {expected}" in capsys.readouterr().err


def test_one_port_for_two_components_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="--port-ingest and --port-api are both 9000"):
        WantedPorts(9000, 9000).check(tmp_path, "127.0.0.1", print)


def test_an_address_of_another_machine_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="no process can listen on this port"):
        WantedPorts(9000).check(tmp_path, "192.0.2.1", print)


def test_a_default_port_in_use_is_reported_and_not_refused(
    used_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidemill_operator.laptop.ports._DEFAULTS", {"ingest": used_port, "api": used_port})
    expected: list[str] = []
    WantedPorts().check(tmp_path, "127.0.0.1", expected.append)
    assert [line.split(":")[0] for line in expected] == [f"port {used_port}", f"port {used_port}"]


def test_init_passes_the_same_ports_to_up() -> None:
    assert WantedPorts(9000).arguments() == ["--port-ingest=9000"]
    assert WantedPorts(0, 0).arguments() == ["--port-ingest=0", "--port-api=0"]


class TestReservedPort:
    """Tests of a port that is wanted by number."""

    def test_a_wanted_port_counts_more_than_a_stored_one(self, tmp_path: Path, used_port: int) -> None:
        file = tmp_path / "ports.json"
        former = Ports(file)
        stored, free = former.get("ingest"), former.get("kafka")
        later = Ports(file, reserved=[free])
        assert later.get("kafka") != free, "kafka gets another port"
        assert later.get("ingest", wanted=free) == free != stored
        assert free < later.get("other/ingest", wanted=free) < free + 200

    def test_a_wanted_port_in_use_is_an_error(self, tmp_path: Path, used_port: int) -> None:
        with pytest.raises(RuntimeError, match=f"port {used_port} for ingest: process {os.getpid()}"):
            Ports(tmp_path / "ports.json", reserved=[used_port]).get("ingest", wanted=used_port)
