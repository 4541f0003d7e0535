"""Services of a compose file are started in order, asked by their own checks, and ended within their own time."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from compose import standins
from compose.checks import queries
from compose.files import Service
from compose.run import Ended, running
from compose.stage import Stage
from tidemill_operator.processes.child import Command


@pytest.fixture(autouse=True)
def shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image whose services are commands of the shell."""

    def stand_in(stage: Stage, service: Service) -> Command:
        environment = standins.environment(stage, service)
        return Command(
            service.name,
            ["/bin/sh", "-c", *(stage.text(service, part) for part in service.command)],
            environment=environment,
        )

    monkeypatch.setattr(standins, "_STAND_INS", {"shell": stand_in, "nothing": None})


def write(folder: Path, text: str) -> Path:
    """A compose file."""
    file = folder / "compose.yaml"
    file.write_text(text)
    return file


SERVICES = """\
x-check: &check {{interval: {interval}, timeout: 5s, retries: 20}}
services:
  second:
    image: shell:1
    command: ["test -e /data/there && touch /own/begun && exec sleep 60"]
    volumes: [data:/data:ro, own:/own]
    healthcheck: {{<<: *check, test: [CMD-SHELL, test -e /own/begun]}}
    depends_on: {{first: {{condition: service_healthy}}}}
  first:
    image: shell:1
    command: ["{first}"]
    environment: {{WHERE: /data/there}}
    volumes: [data:/data]
    stop_grace_period: 0.3s
    healthcheck: {{<<: *check, test: [CMD-SHELL, "test -e $$WHERE || {{ echo not yet; exit 1; }}"]}}
  seen: {{image: "nothing:1", depends_on: [first]}}
volumes: {{data: {{}}, own: {{}}}}
"""


def test_a_service_waits_for_the_health_of_another(tmp_path: Path) -> None:
    """The second one would end at once if the first had not made its file; both see the same volume."""
    file = write(tmp_path, SERVICES.format(interval="1s", first="sleep 0.2; touch $$WHERE; exec sleep 60"))
    with running(file, tmp_path, {}) as found:
        assert list(found.children) == ["first", "second"]
        assert found.seconds["first"] > 0.2
        assert found.troubles() == {}
    assert not any(ended.killed for ended in found.ended.values())
    assert list(found.ended) == ["second", "first"]


@pytest.mark.parametrize(
    ("interval", "first", "message"),
    [
        ("0.01s", "sleep 60", "services.first: not healthy within 0.2 s; its check: status 1 not yet"),
        (
            "1s",
            "echo no memory; exit 3",
            "services.first: ended with 3; its check: status 1 not yet\nits log ends with:\nno mem",
        ),
    ],
)
def test_what_does_not_become_healthy_is_told_with_its_check(
    tmp_path: Path, interval: str, first: str, message: str
) -> None:
    """And everything is ended."""
    file = write(tmp_path, SERVICES.format(interval=interval, first=first))
    with pytest.raises(RuntimeError) as raised, running(file, tmp_path, {}):
        pass
    assert str(raised.value).startswith(message)


def test_who_does_not_end_in_time_is_killed_and_told(tmp_path: Path) -> None:
    """As Docker does it, after the file's `stop_grace_period`."""
    stubborn = "trap : TERM; touch $$WHERE; while true; do sleep 0.05; done"
    with running(write(tmp_path, SERVICES.format(interval="1s", first=stubborn)), tmp_path, {}) as found:
        pass
    assert found.ended["first"].killed
    assert not found.ended["second"].killed


def test_an_image_without_a_stand_in_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "services: {a: {image: 'mysql:9'}}\n")
    with (
        pytest.raises(ValueError, match=r"services\.a\.image: mysql has no stand-in; there are nothing, shell"),
        running(file, tmp_path, {}),
    ):
        pass


def test_a_program_of_a_container_is_found_first(tmp_path: Path) -> None:
    """Arguments stay as they are, whatever is in them."""
    standins.program(tmp_path / "programs" / "ask", ["/bin/echo", "a b", "$HOME"])
    with running(
        write(
            tmp_path,
            "services: {a: {image: 'shell:1', command: ['exec sleep 60'], healthcheck: "
            f"{{test: [CMD, {shlex.quote(str(tmp_path / 'programs' / 'ask'))}], interval: 1s}}}}}}",
        ),
        tmp_path,
        {},
    ) as found:
        assert found.troubles() == {}


def test_queries_of_panels() -> None:
    """Of rows too, with all values in the place of variables; a source that is not there is no panel's."""
    panel = {"title": "P", "targets": [{"expr": 'rate(x{n=~"$n"}[$__rate_interval]) / y{n=~"${n:regex}"}'}]}
    asked = [("P", 'rate(x{n=~".*"}[1m]) / y{n=~".*"}')]
    source = {"datasource": {"uid": "${datasource}"}}
    assert list(queries({"panels": [{"title": "R", "panels": [panel | source]}]}, "here")) == asked
    with pytest.raises(ValueError, match="P: its data source there is not there; there is here"):
        list(queries({"panels": [panel | {"datasource": {"uid": "there"}}]}, "here"))


BROKERS = """\
services:
  kafka-1: {image: "apache/kafka:1", command: ["exec sleep 60"]}
  kafka-2: {image: "apache/kafka:1", command: ["exec sleep 60"]}
  kafka-3: {image: "apache/kafka:1", command: ["exec sleep 60"]}
  database: {image: "shell:1", command: ["exec sleep 60"]}
"""


@pytest.mark.parametrize(
    ("killed", "overdue"),
    [
        (["kafka-2"], []),
        (["kafka-2", "database"], ["database"]),
        (["kafka-2", "kafka-3"], ["kafka-2", "kafka-3"]),
        ([], []),
    ],
)
def test_only_a_broker_without_a_quorum_may_be_killed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: list[str], overdue: list[str]
) -> None:
    """One of three brokers may find no quorum that lets it end; two of three are a majority."""
    monkeypatch.setitem(standins._STAND_INS, "apache/kafka", standins._STAND_INS["shell"])
    with running(write(tmp_path, BROKERS), tmp_path, {}) as found:
        pass
    found.ended.update({name: Ended(30.0, killed=True) for name in killed})
    assert sorted(found.overdue()) == overdue
