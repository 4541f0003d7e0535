"""The ports that the command line of `up` names."""

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
def taken() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield int(listening.getsockname()[1])


@pytest.mark.parametrize("component", ["ingest", "api"])
def test_up_refuses_a_named_port_that_another_process_has_before_it_starts_anything(
    component: str, taken: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    assert main(["up", "-f", str(EXAMPLE), f"--data-dir={data}", f"--port-{component}={taken}"]) == 1
    told = capsys.readouterr().err
    assert f"--port-{component} {taken}: process {os.getpid()} (" in told
    assert f"write another --port-{component}" in told
    assert [path.name for path in data.iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("port", "said"),
    [("99999", "'99999' is not a port"), ("-1", "'-1' is not a port"), ("http", "'http' is not a port")],
)
def test_what_is_no_port_is_refused_with_the_option(
    port: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["up", "-f", str(EXAMPLE), f"--data-dir={tmp_path}", f"--port-api={port}"])
    assert f"--port-api: {said}" in capsys.readouterr().err


def test_one_port_for_two_components_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="--port-ingest and --port-api are both 9000"):
        WantedPorts(9000, 9000).check(tmp_path, "127.0.0.1", print)


def test_an_address_of_another_machine_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="no process can listen on this port"):
        WantedPorts(9000).check(tmp_path, "192.0.2.1", print)


def test_a_taken_default_is_said_and_not_refused(taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill_operator.laptop.ports._DEFAULTS", {"ingest": taken, "api": taken})
    said: list[str] = []
    WantedPorts().check(tmp_path, "127.0.0.1", said.append)
    assert [line.split(":")[0] for line in said] == [f"port {taken}", f"port {taken}"]


def test_init_hands_the_same_ports_on() -> None:
    assert WantedPorts(9000).arguments() == ["--port-ingest=9000"]
    assert WantedPorts(0, 0).arguments() == ["--port-ingest=0", "--port-api=0"]


class TestReservedPort:
    """A port that was asked for by number."""

    def test_it_goes_to_the_name_that_wants_it_whatever_was_stored(self, tmp_path: Path, taken: int) -> None:
        file = tmp_path / "ports.json"
        former = Ports(file)
        stored, free = former.get("ingest"), former.get("kafka")
        later = Ports(file, reserved=[free])
        assert later.get("kafka") != free, "kafka moves away"
        assert later.get("ingest", wanted=free) == free != stored
        assert free < later.get("other/ingest", wanted=free) < free + 200

    def test_it_is_not_exchanged_for_another(self, tmp_path: Path, taken: int) -> None:
        with pytest.raises(RuntimeError, match=f"port {taken} for ingest: process {os.getpid()}"):
            Ports(tmp_path / "ports.json", reserved=[taken]).get("ingest", wanted=taken)
