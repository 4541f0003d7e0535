"""Tests of the ingest application: answers, quotas, settings, errors and the OpenAPI document."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from confluent_kafka import KafkaError

from tidemill_chassis.resilience.config import ResilienceConfig
from tidemill_chassis.web.problems import Problem, retry_after
from tidemill_contract.events.decoder import InvalidEvent, Reason
from tidemill_contract.runtime import WorkloadSettings
from tidemill_ingest.app import Ingest
from tidemill_ingest.kafka.outcomes import Delivery
from tidemill_ingest.openapi import EVENTS_PATH, WEBHOOK_PATH
from tidemill_ingest.quota import BYTES_VARIABLE, EVENTS_VARIABLE, IN_FLIGHT_VARIABLE, Limits, Quota
from tidemill_ingest.records import Records
from tidemill_ingest.results import Outcome, answer, refusal

BAD = InvalidEvent(Reason.MISTYPED, "amount")
TIMED_OUT = KafkaError(KafkaError._MSG_TIMED_OUT)


def outcome(count: int, *, invalid: tuple[int, ...] = (), failed: tuple[int, ...] = ()) -> Outcome:
    records = Records([b"x"] * count, None, {}, dict.fromkeys(invalid, BAD))
    return Outcome(records, Delivery(dict.fromkeys(failed, TIMED_OUT)))


@pytest.mark.parametrize(
    ("invalid", "failed", "wait", "status", "counts", "final"),
    [
        ((), (), True, 200, (3, 0, 0), True),
        ((), (), False, 202, (3, 0, 0), True),
        ((1,), (), True, 207, (2, 1, 0), True),
        ((1,), (), False, 202, (2, 1, 0), True),
        ((), (2,), True, 207, (2, 0, 1), False),
        ((), (2,), False, 207, (2, 0, 1), False),
        ((1,), (1,), True, 207, (2, 0, 1), False),
        ((0, 1), (2,), True, 207, (0, 2, 1), False),
        ((0, 1, 2), (), True, 422, (0, 3, 0), True),
        ((0, 1, 2), (), False, 422, (0, 3, 0), True),
        ((0, 1, 2), (0, 1, 2), True, 503, (0, 0, 3), False),
        ((), (0, 1, 2), True, 503, (0, 0, 3), False),
    ],
    ids=[
        "all accepted", "all queued", "some invalid", "some invalid, queued", "some to be sent again",
        "some not even queued", "an invalid event that was not written", "none accepted, one to be sent again",
        "none valid", "none valid, queued", "none valid and none written", "none written",
    ],
)  # fmt: skip
def test_the_status_code_depends_on_the_outcome_of_each_event(
    invalid: tuple[int, ...],
    failed: tuple[int, ...],
    wait: bool,
    status: int,
    counts: tuple[int, int, int],
    final: bool,
) -> None:
    response = answer(outcome(3, invalid=invalid, failed=failed), wait=wait, all_rows=False)
    body = json.loads(response.body)
    assert (response.status, response.final) == (status, final)
    assert (body["accepted"], body["quarantined"], body["retry"]) == counts
    assert [row["index"] for row in body["results"]] == sorted({*invalid, *failed})
    assert ("retry-after" in response.headers) == bool(failed)
    assert response.media_type == ("application/problem+json" if status >= 400 else "application/json")


def test_each_row_of_the_results_has_status_offset_and_reason() -> None:
    """Members that do not apply are absent."""
    records = Records([b"x"] * 3, None, {}, {1: BAD})
    result = Outcome(records, Delivery({2: TIMED_OUT}, {0: (1, 5), 1: (0, 9)}), ["a", None, "c"])
    assert json.loads(answer(result, wait=True, all_rows=True).body)["results"] == [
        {"index": 0, "id": "a", "status": "accepted", "partition": 1, "offset": 5},
        {"index": 1, "status": "quarantined", "code": "mistyped", "field": "amount", "partition": 0, "offset": 9},
        {"index": 2, "id": "c", "status": "retry", "code": "kafka_msg_timed_out"},
    ]


def test_a_refused_batch_names_only_its_invalid_events() -> None:
    response = refusal(outcome(3, invalid=(1,)))
    body = json.loads(response.body)
    assert (response.status, body["code"], body["accepted"], body["quarantined"]) == (422, "batch_rejected", 0, 0)
    assert body["results"] == [{"index": 1, "status": "rejected", "code": "mistyped", "field": "amount"}]


def test_retry_after_has_jitter_and_is_never_shorter_than_requested() -> None:
    seconds = {int(retry_after(30)["retry-after"]) for _ in range(200)}
    assert min(seconds) >= 30
    assert max(seconds) <= 38
    assert len(seconds) > 3


def events_quota(rate: float, clock: Any) -> Quota:
    return Quota(Limits(events_per_second=rate, bytes_per_second=0), clock=clock)


def test_a_batch_that_exceeds_the_quota_delays_later_batches_of_its_pipeline() -> None:
    """Other pipelines are not affected."""
    now = [0.0]
    quota = events_quota(100, lambda: now[0])
    assert quota.take("p", 40, 1)["ratelimit"] == '"events";r=60;t=1'
    assert quota.take("p", 560, 1)["ratelimit"] == '"events";r=0;t=6'
    assert quota.take("other", 1, 1)["ratelimit"] == '"events";r=99;t=1'
    with pytest.raises(Problem) as refused:
        quota.take("p", 1, 1)
    assert (refused.value.status, refused.value.headers["retry-after"]) == (429, "5")
    now[0] = 4.9
    with pytest.raises(Problem):
        quota.take("p", 1, 1)
    now[0] = 5.1
    quota.take("p", 1, 1)
    now[0] = 1000.0
    assert quota.take("p", 1, 1)["ratelimit"] == '"events";r=99;t=1', "at most the quota of one second is saved"


def test_a_refusal_names_the_limit_that_was_reached() -> None:
    """Events and bytes are limited separately. A refused request is not charged."""
    now = [0.0]
    quota = Quota(Limits(events_per_second=100, bytes_per_second=1000), clock=lambda: now[0])
    assert quota.take("p", 10, 3000) == {
        "ratelimit-policy": '"events";q=100;w=1, "bytes";q=1000;w=1',
        "ratelimit": '"events";r=90;t=1, "bytes";r=0;t=3',
    }
    with pytest.raises(Problem, match="p takes 1000 bytes a second") as refused:
        quota.take("p", 10, 1)
    assert (refused.value.extra, refused.value.headers["retry-after"]) == ({"limit": "bytes_per_second"}, "2")
    assert refused.value.headers["ratelimit"] == '"events";r=90;t=1, "bytes";r=0;t=3'
    now[0] = 3.0
    assert quota.take("p", 1, 1)["ratelimit"] == '"events";r=99;t=1, "bytes";r=999;t=1'


@pytest.mark.parametrize("variable", [EVENTS_VARIABLE, BYTES_VARIABLE, IN_FLIGHT_VARIABLE])
@pytest.mark.parametrize("text", ["-1", "many", "nan", "inf"])
def test_an_invalid_quota_in_the_environment_is_an_error(variable: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"{variable}: '{text}' is not a number of"):
        Limits.from_env({variable: text})


def test_limits_have_defaults_and_can_be_switched_off() -> None:
    assert Limits.from_env({}) == Limits() == Limits.from_env({EVENTS_VARIABLE: ""})
    off = Limits.from_env({EVENTS_VARIABLE: "0", BYTES_VARIABLE: "0", IN_FLIGHT_VARIABLE: "0"})
    assert off == Limits(0, 0, 0)
    assert Quota(off).take("p", 10**9, 10**12) == {}


def test_the_process_exits_with_the_variables_name_if_the_environment_is_invalid() -> None:
    env = {**os.environ, EVENTS_VARIABLE: "many"}
    process = subprocess.run(
        [sys.executable, "-m", "tidemill_ingest"], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (process.returncode, "Traceback" in process.stderr, EVENTS_VARIABLE in process.stderr) == (2, False, True)


def service(folder: Path) -> Ingest:
    settings = WorkloadSettings(kafka_brokers="127.0.0.1:1", config_dir=folder, secrets_dir=folder)
    return Ingest(settings, ResilienceConfig(), Limits(0, 0, 0))


def request(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://ingest") as client:
            return await client.request(method, path, **options)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/pipelines/p/events", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("POST", "/v1/pipelines/p/events", 404, "pipeline_not_found"),
        ("POST", "/v1/pipelines/..%2fp/events", 404, "not_found"),
        ("POST", "/v1/pipelines/p/events?wait=maybe", 400, "invalid_parameter"),
        ("POST", "/v1/pipelines/p/events?results=some", 400, "invalid_parameter"),
        ("POST", "/v1/pipelines/p/events?accept_parital=false", 400, "invalid_parameter"),
    ],
)
def test_every_error_is_a_problem(tmp_path: Path, method: str, path: str, status: int, code: str) -> None:
    response = request(service(tmp_path).app(), method, path)
    assert (response.status_code, response.json()["code"], response.json()["status"]) == (status, code, status)
    assert response.headers["content-type"] == "application/problem+json"


def test_an_unexpected_exception_is_a_problem_without_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    broken = service(tmp_path)
    monkeypatch.setattr(broken.pipelines, "authorize", fail)
    response = request(broken.app(), "POST", "/v1/pipelines/p/events")
    assert (response.status_code, response.json()["code"], "secret" in response.text) == (500, "internal_error", False)


def test_ingest_is_alive_but_not_ready_until_kafka_has_answered(tmp_path: Path) -> None:
    app = service(tmp_path).app()
    assert [request(app, "GET", path).status_code for path in ("/livez", "/readyz", "/health")] == [200, 503, 503]
    health = request(app, "GET", "/health").json()
    assert (health["status"], health["component"]) == ("unhealthy", "ingest")
    assert health["dependencies"]["kafka"]["required"] is True


def test_openapi_describes_the_parameters_and_answers_of_every_route(tmp_path: Path) -> None:
    """Real answers match the schemas."""
    ingest = service(tmp_path)
    app = ingest.app()
    document = request(app, "GET", "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert sorted(document["paths"]) == sorted(["/", "/health", "/livez", "/readyz", EVENTS_PATH, WEBHOOK_PATH])
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (path, method)
            for response in operation["responses"].values():
                assert all(content["schema"] for content in response["content"].values()), (path, method)
    append = document["paths"][EVENTS_PATH]["post"]
    assert {p["name"] for p in append["parameters"]} == {
        "pipeline", "wait", "accept_partial", "results", "Idempotency-Key",
    }  # fmt: skip
    assert set(append["responses"]) == {
        "200", "202", "207", "400", "401", "403", "404", "413", "415", "422", "429", "503", "504",
    }  # fmt: skip
    receive = document["paths"][WEBHOOK_PATH]["post"]
    assert {p["name"] for p in receive["parameters"]} == {"pipeline", "webhook"}
    assert set(receive["responses"]) == {
        "200", "400", "401", "404", "413", "415", "422", "429", "503", "504",
    }  # fmt: skip
    schemas = {"components": document["components"]}
    for path in ("/", "/health", "/readyz"):
        response = request(app, "GET", path)
        content = document["paths"][path]["get"]["responses"][str(response.status_code)]["content"]
        jsonschema.validate(response.json(), {**content["application/json"]["schema"], **schemas})
    rows = json.loads(answer(outcome(3, invalid=(1,), failed=(2,)), wait=True, all_rows=True).body)
    jsonschema.validate(rows, {"$ref": "#/components/schemas/EventResults", **schemas})
