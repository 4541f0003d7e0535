"""An operator that stops itself with SIGSTOP after its n-th write to one system, in mid-pass.

    python freezing_operator.py (kubernetes|kafka|postgres) N

It acts like an operator on a node that hangs: connections and locks remain. SIGCONT continues the pass.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from confluent_kafka.admin import AdminClient

from tidemill_operator.actuators.kafka import session as kafka_session
from tidemill_operator.actuators.kubernetes.api import Document
from tidemill_operator.actuators.kubernetes.cache import CachedApi
from tidemill_operator.actuators.postgres import session as postgres_session
from tidemill_operator.actuators.postgres.session import Session
from tidemill_operator.cluster import serve

SYSTEM, LEFT = sys.argv[1], [int(sys.argv[2])]


def wrote(system: str) -> None:
    """Count a write, and stop the process after the last one."""
    if system == SYSTEM:
        LEFT[0] -= 1
        if LEFT[0] == 0:
            print(f"frozen after a write to {system}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
            print("woken", file=sys.stderr, flush=True)


class FreezingApi(CachedApi):
    """Counts writes of Deployments."""

    def _call(self, method: str, path: str, **more: Any) -> Document:
        answer = super()._call(method, path, **more)
        if method != "GET" and "/deployments/" in path:
            wrote("kubernetes")
        return answer


class FreezingAdmin(AdminClient):  # type: ignore[misc]
    """Counts calls that create topics."""

    def create_topics(self, *arguments: Any, **keywords: Any) -> Any:
        """Create topics, wait for the answers and count the call."""
        futures = super().create_topics(*arguments, **keywords)
        for future in futures.values():
            future.exception(timeout=30)
        wrote("kafka")
        return futures


class FreezingSession(Session):
    """Counts statements that write."""

    def write(self, text: str, *parts: Any, **keywords: Any) -> None:
        """Run a statement and count it."""
        super().write(text, *parts, **keywords)
        wrote("postgres")


serve.CachedApi = FreezingApi  # type: ignore[misc]
kafka_session.AdminClient = FreezingAdmin
postgres_session.Session = FreezingSession  # type: ignore[misc]

if __name__ == "__main__":
    sys.exit(serve.main())
