"""Tests that services of a compose file start in order, are checked, and end within their grace period.

The services are commands of the shell.
"""

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
    """Replace the stand-ins: `shell` runs the service's command in a shell, `nothing` runs nothing."""

    def stand_in(stage: Stage, service: Service) -> Command:
        environment = standins.environment(stage, service)
        return Command(
            service.name,
            ["/bin/sh", "-c", *(stage.text(service, part) for part in service.command)],
            environment=environment,
        )

    monkeypatch.setattr(standins, "_STAND_INS", {"shell": stand_in, "nothing": None})


def write(folder: Path, text: str) -> Path:
    """Write a compose file, and return its path."""
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
    """The second service fails at once unless the first has created a file in the shared volume."""
    file = write(tmp_path, SERVICES.format(interval="1s", first="sleep 0.2; touch $$WHERE; exec sleep 60"))
    with running(file, tmp_path, {}) as stack:
        assert list(stack.children) == ["first", "second"]
        assert stack.seconds["first"] > 0.2
        assert stack.failures() == {}
    assert not any(ended.killed for ended in stack.ended.values())
    assert list(stack.ended) == ["second", "first"]


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
def test_an_unhealthy_service_is_reported_with_its_check_and_its_log(
    tmp_path: Path, interval: str, first: str, message: str
) -> None:
    file = write(tmp_path, SERVICES.format(interval=interval, first=first))
    with pytest.raises(RuntimeError) as raised, running(file, tmp_path, {}):
        pass
    assert str(raised.value).startswith(message)


def test_a_service_that_exceeds_its_grace_period_is_killed_and_reported(tmp_path: Path) -> None:
    stubborn = "trap : TERM; touch $$WHERE; while true; do sleep 0.05; done"
    with running(write(tmp_path, SERVICES.format(interval="1s", first=stubborn)), tmp_path, {}) as stack:
        pass
    assert stack.ended["first"].killed
    assert not stack.ended["second"].killed


def test_an_image_without_a_stand_in_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "services: {a: {image: 'mysql:9'}}\n")
    with (
        pytest.raises(ValueError, match=r"services\.a\.image: mysql has no stand-in; use one of nothing, shell"),
        running(file, tmp_path, {}),
    ):
        pass


def test_a_health_check_runs_the_written_program_of_a_container(tmp_path: Path) -> None:
    """Arguments with spaces and dollar signs are passed unchanged."""
    standins.program(tmp_path / "programs" / "ask", ["/bin/echo", "a b", "$HOME"])
    with running(
        write(
            tmp_path,
            "services: {a: {image: 'shell:1', command: ['exec sleep 60'], healthcheck: "
            f"{{test: [CMD, {shlex.quote(str(tmp_path / 'programs' / 'ask'))}], interval: 1s}}}}}}",
        ),
        tmp_path,
        {},
    ) as stack:
        assert stack.failures() == {}


def test_queries_include_panels_within_rows_and_replace_variables() -> None:
    """A panel with an unknown data source is refused."""
    panel = {"title": "P", "targets": [{"expr": 'rate(x{n=~"$n"}[$__rate_interval]) / y{n=~"${n:regex}"}'}]}
    asked = [("P", 'rate(x{n=~".*"}[1m]) / y{n=~".*"}')]
    source = {"datasource": {"uid": "${datasource}"}}
    assert list(queries({"panels": [{"title": "R", "panels": [panel | source]}]}, "here")) == asked
    with pytest.raises(ValueError, match="P: there is no data source there; use here"):
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
    """The last of three brokers has no quorum, which it needs for a clean end. Two killed brokers are a fault."""
    monkeypatch.setitem(standins._STAND_INS, "apache/kafka", standins._STAND_INS["shell"])
    with running(write(tmp_path, BROKERS), tmp_path, {}) as stack:
        pass
    stack.ended.update({name: Ended(30.0, killed=True) for name in killed})
    assert sorted(stack.overdue()) == overdue
