"""The operator as a process that stops itself right after its n-th write of a kind, in the midst of a pass.

    python freezing_operator.py (kubernetes|kafka|postgres) N

It is like a node that hangs: connections stay open, locks are held, and whoever wakes it finds it where it was.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from confluent_kafka.admin import AdminClient

from tidemill_operator.actuators.kafka import session as kafka_session
from tidemill_operator.actuators.kubernetes.api import Document
from tidemill_operator.actuators.kubernetes.mirror import MirroredApi
from tidemill_operator.actuators.postgres import session as postgres_session
from tidemill_operator.actuators.postgres.session import Session
from tidemill_operator.cluster import serve

SYSTEM, LEFT = sys.argv[1], [int(sys.argv[2])]


def wrote(system: str) -> None:
    """Stop when it is time to."""
    if system == SYSTEM:
        LEFT[0] -= 1
        if LEFT[0] == 0:
            print(f"frozen after a write to {system}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
            print("woken", file=sys.stderr, flush=True)


class FreezingApi(MirroredApi):
    """Writes of workloads count."""

    def _call(self, method: str, path: str, **more: Any) -> Document:
        answer = super()._call(method, path, **more)
        if method != "GET" and "/deployments/" in path:
            wrote("kubernetes")
        return answer


class FreezingAdmin(AdminClient):  # type: ignore[misc]
    """New topics count."""

    def create_topics(self, *asked: Any, **named: Any) -> Any:
        """Make topics."""
        futures = super().create_topics(*asked, **named)
        for future in futures.values():
            future.exception(timeout=30)
        wrote("kafka")
        return futures


class FreezingSession(Session):
    """Statements inside the transaction count."""

    def write(self, text: str, *parts: Any, **named: Any) -> None:
        """Run a statement."""
        super().write(text, *parts, **named)
        wrote("postgres")


serve.MirroredApi = FreezingApi  # type: ignore[misc]
kafka_session.AdminClient = FreezingAdmin
postgres_session.Session = FreezingSession  # type: ignore[misc]

if __name__ == "__main__":
    sys.exit(serve.main())
