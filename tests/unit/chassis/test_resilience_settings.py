"""Tests of resilience settings: defaults, file, environment, and the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from guards import NAMES, Time, raising
from tidemill_chassis.resilience.config import ConfigError, ResilienceConfig
from tidemill_chassis.resilience.guard import Guard, Policy

ROOT = Path(__file__).resolve().parents[3]


def test_the_shipped_file_contains_every_default() -> None:
    path = ROOT / "config" / "resilience.yaml"
    document = yaml.safe_load(path.read_text())
    assert document == ResilienceConfig().model_dump()
    assert ResilienceConfig.load(path, {}) == ResilienceConfig.load(None, {}) == ResilienceConfig()


def test_guards_have_the_documented_defaults() -> None:
    guards = ResilienceConfig().guards()
    values = {g.name: (g.policy.failures, g.policy.open_seconds, g.timeout_seconds, g.policy.retries) for g in guards}
    assert values == {
        "kafka_producer": (5, 60, 30, 3),
        "kafka_consumer": (5, 60, 60, 3),
        "database": (5, 60, 10, 3),
        "redis": (3, 30, 5, 2),
    }
    assert guards.states() == dict.fromkeys(values, "closed")
    assert ResilienceConfig().timeouts.api_request_seconds == 30


@pytest.mark.parametrize(
    ("name", "waits"),
    [("kafka_producer", [1, 2, 4]), ("kafka_consumer", [1, 2, 4]), ("database", [1, 2, 4]), ("redis", [0.5, 1])],
)
def test_the_default_retries_wait_as_documented(name: str, waits: list[float]) -> None:
    policy = getattr(ResilienceConfig().guards(), name).policy
    time = Time()
    guard = Guard(
        next(NAMES),
        Policy(**{field: getattr(policy, field) for field in Policy.__slots__}),
        clock=time,
        sleep=time.sleep,
    )
    with pytest.raises(ConnectionResetError):
        guard.call(raising(ConnectionResetError()))
    assert time.sleeps == waits


def _leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [
        leaf
        for name, value in tree.items()
        for leaf in (_leaves(value, (*path, name)) if isinstance(value, dict) else [(*path, name)])
    ]


@pytest.mark.parametrize("path", _leaves(ResilienceConfig().model_dump()), ids=".".join)
def test_a_variable_sets_its_value_and_no_other(path: tuple[str, ...]) -> None:
    def at(config: ResilienceConfig) -> Any:
        value: Any = config
        for name in path:
            value = getattr(value, name)
        return value

    default = at(ResilienceConfig())
    wanted = (not default) if isinstance(default, bool) else default + 1
    config = ResilienceConfig.load(None, {"TIDEMILL_RESILIENCE__" + "__".join(path).upper(): str(wanted).lower()})
    assert at(config) == wanted
    changed = [leaf for leaf in _leaves(config.model_dump()) if _dig(config, leaf) != _dig(ResilienceConfig(), leaf)]
    assert changed == [path]


def _dig(config: ResilienceConfig, path: tuple[str, ...]) -> Any:
    value: Any = config.model_dump()
    for name in path:
        value = value[name]
    return value


def test_the_environment_overrides_the_file_which_overrides_defaults(tmp_path: Path) -> None:
    file = tmp_path / "resilience.yaml"
    file.write_text("breakers: {redis: {failures: 8, open_seconds: 9}}\nretries:\n")
    config = ResilienceConfig.load(
        file, {"TIDEMILL_RESILIENCE__BREAKERS__REDIS__FAILURES": "2", "TIDEMILL_RESILIENCE_FILE": "x"}
    )
    assert config.breakers.redis.model_dump() == {"failures": 2, "open_seconds": 9, "first_pause_seconds": 2}
    assert config.retries == ResilienceConfig().retries


@pytest.mark.parametrize(
    ("text", "environ", "lines"),
    [
        ("breakers: {databse: {failures: 1}}", {}, [["breakers.databse", "unknown key", "kafka_producer, kafka_"]]),
        ("retry: 1", {}, [["retry", "unknown key", "breakers, retries, timeouts, fallbacks"]]),
        ("breakers: {redis: {failures: 0}}", {}, [["breakers.redis.failures", "greater than or equal to 1", "0"]]),
        ("breakers: {redis: {failures: yes}}", {}, [["breakers.redis.failures", "integer", "True"]]),
        ("breakers: {redis: {open_seconds: 30s}}", {}, [["breakers.redis.open_seconds", "number", "'30s'"]]),
        ("breakers: {redis: {open_seconds: .inf}}", {}, [["breakers.redis.open_seconds", "finite"]]),
        ("breakers: {redis: 3}", {}, [["breakers.redis", "must be a section", "failures, open_seconds"]]),
        ("[1]", {}, [["list", "breakers, retries, timeouts, fallbacks"]]),
        ("a: [", {}, [["not YAML"]]),
        ("retries: {redis: {max_seconds: 0.1}}", {}, [["retries.redis", "max_seconds 0.1", "initial_seconds 0.5"]]),
        ("timeouts: {redis_seconds: 0}\nx: 1", {}, [["timeouts.redis_seconds"], ["x", "unknown key"]]),
        ("", {"BREAKERS__REDIS__FAILURES": "many"}, [["BREAKERS__REDIS__FAILURES", "integer", "'many'"]]),
        ("", {"BREAKERS__REDIS__FAILURE": "7"}, [["TIDEMILL_RESILIENCE__BREAKERS__REDIS__FAILURE:", "failures"]]),
        ("", {"BREAKERS__DATABASE": "7"}, [["TIDEMILL_RESILIENCE__BREAKERS__DATABASE:", "failures, open_seconds"]]),
        ("", {"": "7"}, [["TIDEMILL_RESILIENCE__:", "breakers, retries"]]),
        ("", {"TIMEOUTS__REDIS_SECONDS": "[1"}, [["TIDEMILL_RESILIENCE__TIMEOUTS__REDIS_SECONDS", "'[1'"]]),
        (
            "",
            {"RETRIES__REDIS__MAX_SECONDS": "0.1"},
            [["max_seconds 0.1", "set by TIDEMILL_RESILIENCE__RETRIES__REDIS__MAX_SECONDS"]],
        ),
    ],
)  # fmt: skip
def test_an_error_names_the_key_or_variable_and_the_remedy(
    tmp_path: Path, text: str, environ: dict[str, str], lines: list[list[str]]
) -> None:
    file = tmp_path / "resilience.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        ResilienceConfig.load(file, {f"TIDEMILL_RESILIENCE__{name}": value for name, value in environ.items()})
    messages = str(raised.value).split("\n")
    assert len(messages) == len(lines)
    for line, parts in zip(messages, lines, strict=True):
        assert [part for part in parts if part not in line] == [], line


def test_a_missing_file_is_an_error_that_names_its_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read.*TIDEMILL_RESILIENCE_FILE"):
        ResilienceConfig.load(tmp_path / "gone.yaml", {})


def test_a_custom_predicate_decides_which_errors_open_the_breaker() -> None:
    guards = ResilienceConfig().guards(is_failure={"database": lambda error: isinstance(error, KeyError)})
    for _ in range(5):
        with pytest.raises(KeyError):
            guards.database.call(raising(KeyError()))
    assert guards.states()["database"] == "open"


def test_the_table_of_the_documentation_contains_the_defaults() -> None:
    text = (ROOT / "docs" / "resilience.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    numbers = {row[0]: [float(n) for cell in row[1:] for n in re.findall(r"\d+(?:\.\d+)?", cell)] for row in rows}
    for title, guard in zip(
        ("Kafka producer", "Kafka consumer", "Postgres", "Redis"), ResilienceConfig().guards(), strict=True
    ):
        policy = guard.policy
        waits = [policy.initial_seconds * policy.factor**n for n in range(policy.retries)]
        expected = [policy.failures, policy.open_seconds, policy.retries, *waits, policy.timeout_seconds]
        assert numbers[title] == expected


def test_the_documentation_names_every_metric_of_guards() -> None:
    text = (ROOT / "docs" / "resilience.md").read_text()
    for name in (
        "tidemill_breaker_state{name}",
        "tidemill_breaker_transitions_total{name,state}",
        "tidemill_retries_total",
    ):
        assert name in text
