"""Tests of dashboards and alerts on a real Prometheus that scrapes a running pipeline."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from running.prometheus import Prometheus, prometheus
from running.up import Up, up
from tidemill_operator.laptop.servers import Servers
from waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[3]
DASHBOARDS = sorted((ROOT / "charts/tidemill/dashboards").glob("*.json"))
PIPELINE = """\
apiVersion: tidemill.dev/v1alpha1
kind: AnalyticsPipeline
metadata: {name: watched}
spec:
  source:
    topic: {partitions: 1}
    fields:
      - {name: shop, type: string, required: true}
      - {name: amount, type: number, required: true}
      - {name: ts, type: timestamp, required: true}
    eventTime: {field: ts, maxDisorder: 1s, idleTimeout: 1s}
  transform: {filter: amount > 0}
  aggregations:
    - name: by_shop
      groupBy: [shop]
      window: {type: tumbling, size: 1s}
      metrics:
        - {name: events, function: count}
        - {name: revenue, function: sum, field: amount}
  anomalies:
    - name: jump
      aggregation: by_shop
      metric: revenue
      detector: {type: zscore}
  processor: {flushInterval: 100ms}
"""
# A program that serves the operator's metrics. The operator itself needs a cluster.
OPERATOR = """\
import time
from tidemill_chassis.status_server import StatusServer
from tidemill_operator.cluster.telemetry import LEADER, OperatorMetrics
from tidemill_operator.cluster.queue import Result
from tidemill_operator.keys import Key
server = StatusServer("127.0.0.1", 0, lambda: (200, {}), lambda: True, lambda: True)
server.start()
print(server.port, flush=True)
metrics, key = OperatorMetrics(), Key("default", "watched", "1")
LEADER.set(1)
metrics.record_scaling(key, {"reason": "steady", "desired": 1, "current": 1})
while True:
    with metrics.measure_pass(key) as running_pass:
        running_pass.result = Result.SETTLED
    time.sleep(0.2)
"""


@pytest.fixture(scope="module")
def operator_port() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", OPERATOR], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield int(process.stdout.readline())
    process.terminate()
    process.wait(10)
    process.stdout.close()


def configuration(folder: Path, operator_port: int) -> dict[str, Any]:
    """Return the configuration of Docker Compose with targets of this folder, an operator and short intervals."""
    config = dict(yaml.safe_load((ROOT / "config/prometheus/prometheus.yaml").read_text()))
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "2s"}
    config["rule_files"] = [str(ROOT / "charts/tidemill/files/alerts.yaml")]
    del config["alerting"]
    job = next(job for job in config["scrape_configs"] if job["job_name"] == "tidemill")
    job["file_sd_configs"] = [{"files": [str(folder / "targets.json")], "refresh_interval": "1s"}]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{operator_port}"], "labels": {"component": "operator"}}]
    return {**config, "scrape_configs": [job]}


def queries() -> dict[str, str]:
    """Return the query of every panel, for all namespaces and pipelines."""
    texts = {}
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                text = target["expr"].replace("$namespace", ".*").replace("$pipeline", ".*")
                texts[f"{path.stem}: {panel['title']} {target['refId']}"] = text
    return texts


def has_data(answer: Any) -> bool:
    return bool(answer) and any(not math.isnan(float(item["value"][1])) for item in answer["result"])


class Traffic:
    """Requests to a pipeline: accepted, refused, filtered and late events, and each query twice."""

    def __init__(self, running: Up) -> None:
        self._urls = running.ready_file["pipelines"]["watched"]
        self._client = httpx.Client(timeout=30, trust_env=False)

    def once(self) -> None:
        now = dt.datetime.now(dt.UTC)
        times = [now.isoformat(), now.isoformat(), "soon", (now - dt.timedelta(hours=1)).isoformat()]
        events = [
            {"shop": "north", "amount": amount, "ts": ts} for amount, ts in zip((1, -1, 1, 1), times, strict=True)
        ]
        sent = self._client.post(f"{self._urls['ingest']}/v1/pipelines/watched/events", json=events)
        assert sent.status_code < 300, sent.text
        for _ in range(2):
            answer = self._client.get(f"{self._urls['api']}/v1/pipelines/watched/aggregates/by_shop?limit=5")
            assert answer.status_code == 200, answer.text

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def watched(servers: Servers, tmp_path_factory: pytest.TempPathFactory, operator_port: int) -> Iterator[Any]:
    """Start a pipeline and a Prometheus that scrapes it; return the Prometheus and the pipeline's traffic."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "a.yaml").write_text(PIPELINE)
    environ = {
        "TIDEMILL_KAFKA_BROKERS": servers.kafka,
        "TIDEMILL_POSTGRES_URL": servers.postgres.url,
        "TIDEMILL_REDIS_URL": servers.redis,
    }
    with (
        up(folder, options=("--targets-file", "targets.json"), environ=environ) as running,
        prometheus(folder, configuration(folder, operator_port)) as server,
    ):
        running.wait_ready()
        traffic = Traffic(running)
        yield server, traffic
        traffic.close()


def test_every_panel_has_data_while_events_arrive(watched: tuple[Prometheus, Traffic]) -> None:
    server, traffic = watched
    empty = queries()

    def filled() -> bool:
        traffic.once()
        for name in [name for name, text in empty.items() if has_data(server.ask("query", query=text))]:
            del empty[name]
        return not empty

    try:
        eventually(filled, seconds=60, what="panels have data")
    except AssertionError:
        pytest.fail(f"no data: {json.dumps(empty, indent=1)}")


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_variables_of_dashboards_offer_namespaces_and_pipelines(
    watched: tuple[Prometheus, Traffic], dashboard: Path
) -> None:
    """The test sends the queries that Grafana sends for its lists."""
    for variable in json.loads(dashboard.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
            offered = watched[0].ask(f"label/{label}/values", **{"match[]": series.replace("$namespace", ".*")})
            assert offered == [{"namespace": "default", "pipeline": "watched"}[label]]


def test_alert_rules_evaluate_and_their_series_have_the_labels_that_they_use(
    watched: tuple[Prometheus, Traffic],
) -> None:
    server, _ = watched

    def rules() -> list[dict[str, Any]]:
        groups = (server.ask("rules") or {"groups": []})["groups"]
        return [rule for group in groups for rule in group["rules"]]

    eventually(
        lambda: bool(rules()) and all(rule["health"] == "ok" for rule in rules()), seconds=30, what="all rules evaluate"
    )
    for series in (
        "tidemill_events_consumed_total{%s}",
        'tidemill_freshness_seconds_bucket{%s, le="30.0"}',
        "tidemill_keeper_pass_timestamp_seconds{%s}",
        'anomalies_detected_total{%s, rule="jump"}',
        'tidemill_breaker_transitions_total{%s, component="processor", name="database", state="open"}',
        'tidemill_operator_reconciliations_failed_total{%s, component="operator"}',
    ):
        text = series % 'job="tidemill", namespace="default", pipeline="watched"'
        eventually(lambda text=text: has_data(server.ask("query", query=text)), seconds=20, what=text)
    assert server.ask("label/__name__/values", **{"match[]": '{__name__=~".*_created"}'}) == []
