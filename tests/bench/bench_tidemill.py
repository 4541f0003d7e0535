"""Tidemill's processors in a benchmark: their start, their progress, their CPU time and their memory."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from shared.support import Cpu, Pipeline, await_condition, free_port, peak_rss_mib

from tidemill_operator.laptop.servers import Servers

_SESSION = {"TIDEMILL_SESSION_TIMEOUT_MS": "120000"}
"""Stopped processors stay members of their consumer group with this long timeout."""


@dataclass(frozen=True)
class Meter:
    """A meter of the CPU seconds of processors and of Postgres, without the benchmark's sessions in Postgres."""

    processors: tuple[Cpu, ...]
    postgres: Cpu
    own: tuple[Cpu, ...]

    @classmethod
    def of(cls, servers: Servers, pids: Sequence[int], connections: Sequence[psycopg.Connection[Any]]) -> Meter:
        """Return a meter of processors and of Postgres. The sessions of `connections` are left out."""
        own = tuple(Cpu(connection.info.backend_pid) for connection in connections)
        return cls(tuple(Cpu(pid) for pid in pids), Cpu(servers.handles["postgres"].pid), own)

    def read(self) -> tuple[float, float]:
        """Return the CPU seconds of the processors and of Postgres."""
        processors = sum(cpu.seconds() for cpu in self.processors)
        return processors, self.postgres.seconds() - sum(cpu.seconds() for cpu in self.own)


def consumed(connection: psycopg.Connection[Any], pipeline: Pipeline) -> int:
    """Return the number of events that are in Postgres."""
    row = connection.execute(
        f"SELECT coalesce(sum(consumed), 0)::bigint FROM {pipeline.schema}._offsets WHERE reader = 'live'"
    ).fetchone()
    return int(row[0]) if row else 0


@contextmanager
def frozen(pipeline: Pipeline, replicas: int, partitions: int) -> Iterator[tuple[list[int], Callable[[], None]]]:
    """Start processors, and stop them with SIGSTOP when they have their partitions.

    Yield their pids and a function that lets them continue.
    """
    with ExitStack() as stack:
        ports = [free_port() for _ in range(replicas)]
        processes = [stack.enter_context(pipeline.run("tidemill_processor", port, _SESSION)) for port in ports]
        shares = sorted(len(range(n, partitions, replicas)) for n in range(replicas))
        await_condition(
            lambda: sorted(_partitions(port) for port in ports) == shares, seconds=120, interval=0.2
        )  # fmt: skip
        pids = [process.pid for process in processes]

        def wake() -> None:
            _signal(pids, signal.SIGCONT)

        stack.callback(wake)
        _signal(pids, signal.SIGSTOP)
        yield pids, wake


def _signal(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


def _partitions(port: int) -> int:
    """Return the number of a processor's partitions; -1 if it does not answer or is not connected."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return len(json.load(answer)["partitions"])
    except OSError:
        return -1


def greatest_rss_mib(pids: Sequence[int]) -> float:
    """Return the maximal resident set size of the largest process, in MiB."""
    return max(peak_rss_mib(pid) for pid in pids)
