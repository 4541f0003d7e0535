"""Tests of health reports: status, details of dependencies, and hidden credentials."""

from __future__ import annotations

import json

import pytest

from tidemill_chassis.health import Dependency, health_report

KAFKA, POSTGRES = Dependency("kafka", True, True), Dependency("postgres", True, True)


@pytest.mark.parametrize(
    ("dependencies", "code", "status"),
    [
        ([], 200, "healthy"),
        ([KAFKA, POSTGRES, Dependency("redis", True, False)], 200, "healthy"),
        ([KAFKA, POSTGRES, Dependency("redis", False, False)], 200, "degraded"),
        ([KAFKA, Dependency("postgres", False, True), Dependency("redis", True, False)], 503, "unhealthy"),
        ([Dependency("postgres", False, True), Dependency("redis", False, False)], 503, "unhealthy"),
        ([Dependency("postgres", True, True, breaker="open")], 503, "unhealthy"),
        ([KAFKA, Dependency("redis", True, False, breaker="open")], 200, "degraded"),
        ([Dependency("postgres", True, True, breaker="half_open")], 200, "healthy"),
    ],
    ids=[
        "no dependencies",
        "all up",
        "an optional dependency is down",
        "a required dependency is down",
        "a required and an optional dependency are down",
        "the breaker of a required dependency is open",
        "the breaker of an optional dependency is open",
        "the breaker is half-open and the last contact succeeded",
    ],
)
def test_the_worst_dependency_decides_the_status(dependencies: list[Dependency], code: int, status: str) -> None:
    returned, body = health_report("api", dependencies)
    assert (returned, body["status"], body["component"]) == (code, status, "api")


def test_a_report_describes_each_dependency() -> None:
    _, body = health_report(
        "processor",
        [
            Dependency("kafka", True, True, latency_ms=1.26),
            Dependency("redis", False, False, "refused\n  by host", "open"),
        ],
        {"lag": 7},
    )
    assert body == {
        "status": "degraded",
        "component": "processor",
        "dependencies": {
            "kafka": {"status": "up", "required": True, "breaker": "closed", "latency_ms": 1.3},
            "redis": {"status": "down", "required": False, "breaker": "open", "detail": "refused by host"},
        },
        "lag": 7,
    }


@pytest.mark.parametrize(
    ("dependency", "detail"),
    [
        (Dependency("redis", True, False, breaker="open"), "circuit breaker open"),
        (Dependency("redis", False, False), "no answer"),
        (Dependency("redis", False, False, "x" * 500), "x" * 299 + "…"),
    ],
    ids=["open breaker", "no text", "too long"],
)
def test_a_dependency_that_is_down_always_has_a_detail(dependency: Dependency, detail: str) -> None:
    assert health_report("api", [dependency])[1]["dependencies"]["redis"]["detail"] == detail


@pytest.mark.parametrize(
    "text",
    [
        "cannot reach redis://user:s3cret@cache:6379/0",
        "cannot reach redis://:s3cret@cache:6379/0",
        "cannot reach rediss://user:p@s3cret@cache:6379/0",
        "postgresql://writer:s3cret@db/x failed",
        "connection to host=db password=s3cret failed",
        "connection to host=db password='with s3cret' failed",
    ],
)
def test_credentials_are_not_shown(text: str) -> None:
    _, body = health_report("api", [Dependency("x", False, True, text)])
    assert "s3cret" not in json.dumps(body)


@pytest.mark.parametrize("name", ["status", "component", "dependencies"])
def test_extra_members_cannot_replace_members_of_the_report(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        health_report("api", [], {name: "healthy"})
