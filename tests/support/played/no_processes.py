"""A runtime that starts no processes, for passes of the operator on a real Kafka and Postgres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tidemill_operator.outcome import COMPONENT_OF_WORKLOAD, Outcome, done
from tidemill_operator.plan.model import Workload


class NoProcesses:
    """A runtime that reports every workload as ready at once."""

    def ensure(self, workloads: Sequence[Workload]) -> list[Outcome]:
        return [done(COMPONENT_OF_WORKLOAD[workload.component], workload.name) for workload in workloads]

    def observe(self, workloads: Sequence[Workload]) -> list[Outcome]:
        return self.ensure(workloads)

    def remove(self, namespace: str, pipeline: str) -> None:
        pass

    def exists(self, namespace: str, pipeline: str) -> bool:
        return True

    def endpoints(self, namespace: str, pipeline: str) -> Mapping[str, str]:
        return {}
