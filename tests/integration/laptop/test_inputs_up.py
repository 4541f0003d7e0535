"""Test of webhooks and MQTT under `tidemill up`, with real servers and a real Mosquitto."""

from __future__ import annotations

import hmac
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from running.mosquitto import PROGRAM, Mosquitto
from running.up import up
from waiting import eventually

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not Path(PROGRAM).exists(), reason="mosquitto is not installed: make setup"),
]

PIPELINE = """
apiVersion: tidemill.dev/v1alpha1
kind: AnalyticsPipeline
metadata: {name: inputs}
spec:
  source:
    topic: {partitions: 2}
    webhooks:
      - {name: github, signature: github, secretRef: {name: hooks, key: github}}
    mqtt: {broker: "mqtt://127.0.0.1:PORT", topics: [plant/+/temp], secretRef: {name: broker}}
    fields:
      - {name: value, type: integer, required: true}
      - {name: kind, type: string, from: header, path: X-GitHub-Event, default: none}
      - {name: place, type: string, from: header, path: mqtt-topic, default: none}
  aggregations:
    - name: all
      groupBy: [kind, place]
      window: {type: tumbling, size: 1d}
      metrics: [{name: events, function: count}, {name: total, function: sum, field: value}]
"""


def test_events_of_webhooks_and_of_mqtt_are_counted(tmp_path: Path, servers: Any) -> None:
    """Webhooks are refused until their secret is a file in the data folder."""
    broker_folder = tmp_path / "broker"
    broker_folder.mkdir()
    broker = Mosquitto(broker_folder)
    broker.start()
    (tmp_path / "a.yaml").write_text(PIPELINE.replace("PORT", str(broker.port)))
    environ = {
        "TIDEMILL_KAFKA_BROKERS": servers.kafka,
        "TIDEMILL_POSTGRES_URL": servers.postgres.url,
        "TIDEMILL_REDIS_URL": servers.redis,
    }
    try:
        with up(tmp_path, environ=environ) as running:
            running.wait_ready()
            _send_and_check(running, broker, tmp_path)
    finally:
        broker.stop()


def _send_and_check(running: Any, broker: Mosquitto, folder: Path) -> None:
    urls = running.ready_file["pipelines"]["inputs"]
    address, body = f"{urls['ingest']}/v1/pipelines/inputs/webhooks/github", b'{"value": 5}'

    def post() -> httpx.Response:
        signed = "sha256=" + hmac.new(b"swordfish", body, "sha256").hexdigest()
        headers = {"x-hub-signature-256": signed, "x-github-event": "push", "content-type": "application/json"}
        return httpx.post(address, content=body, headers={**headers, "x-github-delivery": "1"}, timeout=30)

    assert (post().status_code, post().json()["code"]) == (503, "no_secret")
    condition = next(
        c for c in running.status["pipelines"]["default/inputs"]["conditions"] if c["type"] == "IngestReady"
    )
    assert "Secret hooks has no key github" in condition["message"]
    secret = folder / ".tidemill" / "secret-refs" / "default" / "hooks"
    secret.mkdir(parents=True)
    (secret / "github").write_text("swordfish\n")
    eventually(lambda: post().status_code == 200, seconds=10, what="the secret is read")
    assert post().headers["idempotency-replayed"] == "true"
    broker.publish("plant/a/temp", b'{"value": 1}', b'{"value": 2}', b"no JSON")

    def rows() -> dict[tuple[str, str], tuple[int, int]]:
        answer = httpx.get(f"{urls['api']}/v1/pipelines/inputs/aggregates/all", timeout=30).json()
        return {(row["kind"], row["place"]): (row["events"], row["total"]) for row in answer["data"]}

    expected = {("push", "none"): (1, 5), ("none", "plant/a/temp"): (2, 3)}
    eventually(
        lambda: rows() == expected, seconds=60, what=lambda: f"events of both are counted: {rows()}\n{running.output}"
    )
    letters = httpx.get(f"{urls['api']}/v1/pipelines/inputs/dead-letters", timeout=30).json()["data"]
    assert [letter["reason"] for letter in letters] == ["not_json"], json.dumps(letters)
