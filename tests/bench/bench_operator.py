"""Benchmark of one operator process with many pipelines: time until all are ready, cost at rest, and writes.

    python tests/bench/bench_operator.py [--pipelines 200] [--namespaces 10] [--rest-seconds 180]

The benchmark starts an API server with its controllers, Kafka and Postgres. There are no nodes: a stand-in marks pods
as ready. The pipelines are suspended, so that only the operator works.

- Requests to the API server are those of the operator's account in the audit log. A watch counts once, at its start.
- Writes to Postgres are the transaction ids that Postgres has assigned. Autovacuum is off meanwhile.
- Writes to Kafka are those in the operator's metrics.

The benchmark has four phases. It creates all pipelines at once, then one more pipeline. Then it waits, and counts the
requests at rest. At last it requests a pass over each pipeline, in which nothing is to be changed.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table
from shared.operator_process import Operator, Requests, is_ready, resource, running_operator
from shared.support import Cpu, await_condition, peak_rss_mib, rss_mib

from kube import standin
from kube.controlplane import ControlPlane
from tidemill_operator.actuators.kubernetes.api import PIPELINE, Api
from tidemill_operator.laptop.servers import Servers, start_servers

TARGET_REQUESTS, TARGET_WRITES, TARGET_MIB = 5.0, 4.0, 300.0
_READS = frozenset({"get", "list", "watch"})
# The operator writes the leader's Lease and the watchdog's object even if no pipeline changes.
_OWN = frozenset({"leases", "configmaps/tidemill-watchdog"})
_SETTLED_SECONDS = 45.0


@dataclass
class Figures:
    """The results of the benchmark.

    Attributes:
        phases_seconds: The operator's seconds until all pipelines were ready, by phase of a pass.
        requests: Number of requests at rest, by verb and resource.
        second_pass_writes: Number of writes in the second pass, by server. The Lease and the watchdog's object are
            left out.
    """

    pipelines: int
    namespaces: int
    ready_seconds: float = 0.0
    ready_median_seconds: float = 0.0
    passes_until_ready: int = 0
    phases_seconds: dict[str, float] = field(default_factory=dict)
    one_ready_seconds: float = 0.0
    rest_seconds: float = 0.0
    requests_per_second: float = 0.0
    writes_per_second: float = 0.0
    requests: dict[str, int] = field(default_factory=dict)
    cpu_share: float = 0.0
    rss_mib: float = 0.0
    peak_rss_mib: float = 0.0
    second_pass_seconds: float = 0.0
    second_pass_requests: int = 0
    second_pass_writes: dict[str, int] = field(default_factory=dict)
    load_average: float = 0.0

    @property
    def missed(self) -> list[str]:
        """Names of the targets that were missed."""
        met_by_name = {
            f"fewer than {TARGET_REQUESTS:g} requests/s at rest": self.requests_per_second < TARGET_REQUESTS,
            f"fewer than {TARGET_WRITES:g} writes/s at rest": self.writes_per_second < TARGET_WRITES,
            f"less than {TARGET_MIB:g} MiB": self.peak_rss_mib < TARGET_MIB,
            "no write in a second pass": not any(self.second_pass_writes.values()),
        }
        return [name for name, met in met_by_name.items() if not met]


class Bench:
    """A run of the benchmark."""

    def __init__(
        self, options: argparse.Namespace, api: Api, requests: Requests, servers: Servers, operator: Operator
    ) -> None:
        self._options, self._api, self._requests, self._servers = options, api, requests, servers
        self._operator = operator
        self.figures = Figures(options.pipelines, options.namespaces)

    def run(self) -> Figures:
        """Run all phases, and return the figures."""
        self._all_at_once()
        self._one_more_pipeline()
        self._rest()
        self._second_pass()
        self.figures.load_average = os.getloadavg()[1]
        return self.figures

    def _all_at_once(self) -> None:
        options, figures = self._options, self.figures
        namespaces = [f"bench-{number}" for number in range(options.namespaces)]
        for namespace in namespaces:
            self._api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        _print(f"creating {options.pipelines} pipelines")
        began, seconds = time.monotonic(), []
        for number in range(options.pipelines):
            self._api.create(resource(f"orders-{number}", namespaces[number % options.namespaces]))
        printed_at = 0.0
        while len(seconds) < options.pipelines:
            time.sleep(1.0)
            ready = sum(is_ready(document) for document in self._api.list(PIPELINE))
            now = time.monotonic() - began
            seconds += [now] * (ready - len(seconds))
            if now - printed_at > 15.0:
                printed_at = now
                _print(f"{ready} pipelines are ready after {now:.0f} s")
            if now > options.ready_seconds:
                raise TimeoutError(f"{ready} of {options.pipelines} pipelines are ready after {now:.0f} s")
        figures.ready_seconds, figures.ready_median_seconds = seconds[-1], seconds[len(seconds) // 2]
        figures.passes_until_ready, figures.phases_seconds = self._operator.passes(), self._operator.phases()

    def _one_more_pipeline(self) -> None:
        """Create a pipeline while the operator has nothing else to do."""
        self._settle()
        began = time.monotonic()
        self._api.create(resource("one-more", "bench-0"))
        ready = lambda: is_ready(self._api.get(PIPELINE, "bench-0", "one-more") or {})  # noqa: E731
        await_condition(ready, seconds=60, interval=0.1)
        self.figures.one_ready_seconds = time.monotonic() - began

    def _settle(self) -> None:
        time.sleep(_SETTLED_SECONDS if self._options.pipelines > 50 else 15.0)

    def _rest(self) -> None:
        figures, pid = self.figures, self._operator.process.pid
        self._settle()
        _print(f"counting requests at rest for {self._options.rest_seconds:g} s")
        cpu, used, began = Cpu(pid), Cpu(pid).seconds(), time.monotonic()
        self._requests.since_last_call()
        time.sleep(self._options.rest_seconds)
        requests = self._requests.since_last_call()
        seconds = time.monotonic() - began
        counted = collections.Counter(f"{verb} {resource}" for verb, resource in requests)
        figures.rest_seconds, figures.requests = seconds, dict(counted.most_common())
        figures.requests_per_second = len(requests) / seconds
        figures.writes_per_second = sum(verb not in _READS for verb, _ in requests) / seconds
        figures.cpu_share = (cpu.seconds() - used) / seconds
        figures.rss_mib, figures.peak_rss_mib = rss_mib(pid), peak_rss_mib(pid)

    def _second_pass(self) -> None:
        """Request a pass over each pipeline as an administrator. The operator has nothing to change."""
        documents = self._api.list(PIPELINE, metadata_only=True)
        _print(f"requesting a pass over each of {len(documents)} pipelines")
        with _quiet_postgres(self._servers) as postgres:
            self._requests.since_last_call()
            before, passes, began = _transactions(postgres), self._operator.passes(), time.monotonic()
            kafka = self._operator.kafka_writes()
            for document in documents:
                metadata = document["metadata"]
                patch = {"metadata": {"annotations": {"tidemill.dev/reconcile-at": "now"}}}
                self._api.merge(PIPELINE, metadata["namespace"], metadata["name"], patch)
            await_condition(lambda: self._operator.passes() >= passes + len(documents), seconds=600, interval=0.5)
            self.figures.second_pass_seconds = time.monotonic() - began
            time.sleep(3.0)  # The API server writes the audit log in batches.
            requests = self._requests.since_last_call()
            writes = [request for request in requests if request[0] not in _READS and request[1] not in _OWN]
            self.figures.second_pass_requests = len(requests)
            self.figures.second_pass_writes = {
                "kubernetes": len(writes),
                "kafka": self._operator.kafka_writes() - kafka,
                "postgres": _transactions(postgres) - before,
            }
            if writes:
                _print(str(collections.Counter(writes)))


@contextmanager
def _quiet_postgres(servers: Servers) -> Iterator[psycopg.Connection[Any]]:
    """Yield a connection to Postgres, whose autovacuum is off."""
    at = servers.postgres
    with psycopg.connect(
        host=at.host, port=at.port, dbname=at.database, user=at.user, password=at.password, autocommit=True
    ) as connection:
        connection.execute("ALTER SYSTEM SET autovacuum = off")
        connection.execute("SELECT pg_reload_conf()")
        time.sleep(2.0)
        yield connection


def _transactions(connection: psycopg.Connection[Any]) -> int:
    """Return the next transaction id. Each transaction that writes gets an id."""
    row = connection.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone()
    assert row is not None
    return int(row[0])


def table(figures: Figures) -> Table:
    """Return the figures as a table."""
    table = Table(title=f"One operator, {figures.pipelines:,} pipelines in {figures.namespaces} namespaces")
    for heading, justify in (("", "left"), ("measured", "right"), ("target", "right")):
        table.add_column(heading, justify="right" if justify == "right" else "left")
    phases = ", ".join(f"{name} {value / figures.pipelines:.2f}" for name, value in figures.phases_seconds.items())
    busiest = ", ".join(f"{name} {count}" for name, count in list(figures.requests.items())[:6])
    writes = ", ".join(f"{name} {count}" for name, count in figures.second_pass_writes.items())
    for row in (
        ("all ready", f"{figures.ready_seconds:.0f} s (half of them after {figures.ready_median_seconds:.0f} s)", ""),
        ("  passes until then", f"{figures.passes_until_ready}", ""),
        ("  seconds a pipeline, 4 pipelines at a time", phases, ""),
        ("one more ready", f"{figures.one_ready_seconds:.1f} s", ""),
        ("requests/s at rest", f"{figures.requests_per_second:.2f}", f"< {TARGET_REQUESTS:g}"),
        ("writes/s at rest", f"{figures.writes_per_second:.2f}", f"< {TARGET_WRITES:g}"),
        (f"  in {figures.rest_seconds:.0f} s", busiest, ""),
        ("memory, MiB (peak)", f"{figures.rss_mib:.0f} ({figures.peak_rss_mib:.0f})", f"< {TARGET_MIB:g}"),
        ("CPU at rest", f"{figures.cpu_share:.1%} of a core", ""),
        ("second pass over all", f"{figures.second_pass_seconds:.0f} s, {figures.second_pass_requests} requests", ""),
        ("  writes", writes, "none"),
    ):
        table.add_row(*row)
    return table


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipelines", type=int, default=200)
    parser.add_argument("--namespaces", type=int, default=10)
    parser.add_argument("--rest-seconds", type=float, default=180.0)
    parser.add_argument("--ready-seconds", type=float, default=1800.0, help="time limit until all are ready")
    parser.add_argument("--output", type=Path, default=Path("build/bench-operator.json"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tidemill-bench-"))
    folder.chmod(0o755)
    servers, stopping = start_servers(folder / "servers", durable=False, on_progress=_print), threading.Event()
    try:
        with ControlPlane(folder / "plane", controllers=True, audited=True, on_progress=_print) as plane:
            api = standin.install(plane)
            kubeconfig = standin.account(plane, api, folder)
            kubelet = threading.Thread(
                target=standin.run_pods, args=(api, stopping), kwargs={"interval_seconds": 1.0}, daemon=True
            )
            kubelet.start()
            with running_operator(folder, kubeconfig, servers) as operator:
                figures = Bench(options, api, Requests(plane.audit_log), servers, operator).run()
            stopping.set()
            kubelet.join(10.0)
    finally:
        stopping.set()
        servers.stop()
        shutil.rmtree(folder, ignore_errors=True)
    console = Console(width=140)
    console.print(table(figures))
    if figures.load_average > (os.cpu_count() or 1):
        console.print(
            f"[yellow]The machine was busy with other work (load average {figures.load_average:.1f}); seconds are not"
            " reliable.[/]"
        )
    for name in figures.missed:
        console.print(f"[bold red]MISSED[/]: {name}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({**asdict(figures), "missed": figures.missed}, indent=1))
    return 1 if figures.missed else 0


if __name__ == "__main__":
    sys.exit(main())
