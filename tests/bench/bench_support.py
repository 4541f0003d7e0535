"""What benchmarks share: CPU and memory of a process tree from /proc, and a pipeline made by the operator's own actuators."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from confluent_kafka.admin import AdminClient, NewTopic
from tidemill_contract import names
from tidemill_contract.partials import quote
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_contract.spec import PipelineSpec
from tidemill_operator.servers import Servers

T = TypeVar("T")
NAMESPACE = "bench"
_TICK = os.sysconf("SC_CLK_TCK")


class Cpu:
    """User and system seconds of a process and all its children, those already reaped included."""

    def __init__(self, pid: int | None) -> None:
        assert pid is not None
        self._pid = pid

    def seconds(self) -> float:
        """Seconds so far."""
        children: dict[int, list[int]] = {}
        used: dict[int, int] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                children.setdefault(int(fields[1]), []).append(int(entry))
                used[int(entry)] = sum(map(int, fields[11:15]))
        ticks, todo = 0, [self._pid]
        while todo:
            pid = todo.pop()
            ticks += used.get(pid, 0)
            todo += children.get(pid, [])
        return ticks / _TICK


def peak_rss_mib(pid: int) -> float:
    """The greatest resident set a process ever had, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def await_condition(check: Callable[[], T], *, seconds: float, interval: float) -> T:
    """The first true value of `check`.

    Raises:
        TimeoutError: there was none in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        if value := check():
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(interval)


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
