"""The operator as a process, readers of its metrics and of its requests, and the pipelines of the benchmark."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.support import await_condition, free_port

from kube import standin
from tidemill_operator.actuators.kubernetes.api import PIPELINE, Document
from tidemill_operator.laptop.servers import Servers

_USER = f"system:serviceaccount:{standin.HOME}:{standin.ACCOUNT}"


class Requests:
    """A reader of the operator's requests in the API server's audit log."""

    def __init__(self, log: Path) -> None:
        self._log, self._position = log, 0

    def since_last_call(self) -> list[tuple[str, str]]:
        """Return the verb and the resource of each request since the last call. A watch counts once."""
        requests = {}
        with self._log.open("rb") as lines:
            lines.seek(self._position)
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                self._position += len(line)
                event = json.loads(line)
                if event["user"].get("username") != _USER:
                    continue
                if event["verb"] == "watch" and event["stage"] != "ResponseStarted":
                    continue
                target = event.get("objectRef") or {}
                name = f"/{target['name']}" if target.get("name") == "tidemill-watchdog" else ""
                resource = target.get("resource", event["requestURI"].partition("?")[0]) + name
                resource += f"/{target['subresource']}" if "subresource" in target else ""
                requests[event["auditID"]] = (event["verb"], resource)
        return list(requests.values())


class Operator:
    """The process of an operator, and its metrics."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self._port = process, port

    def metrics(self) -> dict[str, float]:
        """Return the metrics by name and labels; an empty dictionary if the operator does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return {}
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def passes(self) -> int:
        """Return the number of passes since the start."""
        return int(
            sum(n for name, n in self.metrics().items() if name.startswith("tidemill_operator_reconciliations_total{"))
        )

    def phases(self) -> dict[str, float]:
        """Return the seconds of all passes since the start, by phase of a pass."""
        name = "tidemill_operator_reconciliation_duration_seconds_sum{phase="
        return {key.split('"')[1]: value for key, value in self.metrics().items() if key.startswith(name)}

    def kafka_writes(self) -> int:
        """Return the number of changed topics since the start."""
        return int(self.metrics().get('tidemill_operator_changes_total{phase="topics"}', 0))


@contextmanager
def running_operator(folder: Path, kubeconfig: Path, servers: Servers) -> Iterator[Operator]:
    """Start an operator, wait until it leads, and end it with the block."""
    ports = free_port(), free_port()
    addresses = {
        "TIDEMILL_KAFKA_BROKERS": servers.kafka,
        "TIDEMILL_POSTGRES_URL": servers.postgres.url,
        "TIDEMILL_REDIS_URL": servers.redis,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}
    environment = {**inherited, **standin.environment(kubeconfig, addresses, pod="operator-0", ports=ports)}
    log = folder / "operator.log"
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "tidemill_operator"], env=environment, stdout=out, stderr=out)
    operator = Operator(process, ports[0])
    try:
        await_condition(lambda: operator.metrics().get("tidemill_operator_leader") == 1.0, seconds=60, interval=0.2)
        yield operator
    except BaseException:
        print(log.read_text()[-4000:], file=sys.stderr)
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def resource(name: str, namespace: str) -> Document:
    """Return a typical pipeline that is suspended."""
    fields = [
        {"name": "ts", "type": "timestamp", "required": True},
        {"name": "country", "type": "string", "required": True},
        {"name": "amount", "type": "number"},
    ]
    metrics = [
        {"name": "orders", "function": "count"},
        {"name": "revenue", "function": "sum", "field": "amount"},
        {"name": "largest", "function": "max", "field": "amount"},
    ]
    aggregations = [
        {
            "name": f"by_country_{size}",
            "groupBy": ["country"],
            "window": {"type": "tumbling", "size": size},
            "metrics": metrics,
        }
        for size in ("1m", "1h")
    ]
    spec = {
        "suspend": True,
        "source": {
            "topic": {"partitions": 1, "replicationFactor": 1},
            "fields": fields,
            "eventTime": {"field": "ts", "maxDisorder": "5s"},
        },
        "aggregations": aggregations,
    }
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": PIPELINE.api_version, "kind": PIPELINE.kind, "metadata": metadata, "spec": spec}


def is_ready(document: Document) -> bool:
    """Return whether the condition Ready is true."""
    conditions = (document.get("status") or {}).get("conditions", ())
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
