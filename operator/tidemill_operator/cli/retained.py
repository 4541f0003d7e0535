"""Lists and removes data of deleted pipelines in Kafka and Postgres, for `tidemill status --retained`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tidemill_contract import names
from tidemill_contract.resource.spec import API_VERSION, KIND
from tidemill_operator.actuators.base import Actuators
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.actuators.local.secrets import FileSecrets
from tidemill_operator.actuators.postgres.retained import owned_schemas
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.cli.live_servers import ANSWER_SECONDS, LiveServers, find_servers
from tidemill_operator.cli.main import CommandError
from tidemill_operator.errors import TidemillError
from tidemill_operator.outcome import Outcome, Rank
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.model import Workload
from tidemill_operator.reconcile import release

_KINDS = ("events", "results", "anomalies", "dead-letters")
_ROLES = ("owner", "writer", "reader")


@dataclass(frozen=True)
class RetainedData:
    """The data of one deleted pipeline that is still in Kafka and Postgres."""

    owner: Owner
    schema: str
    topics: tuple[str, ...]
    roles: tuple[str, ...]

    @property
    def key(self) -> str:
        """The key `namespace/name` of the deleted pipeline."""
        return f"{self.owner.namespace}/{self.owner.name}"


class _EmptyRuntime:
    """A runtime without workloads, for deleted pipelines."""

    def ensure(self, workloads: Sequence[Workload]) -> list[Outcome]:
        return []

    def observe(self, workloads: Sequence[Workload]) -> list[Outcome]:
        return []

    def remove(self, namespace: str, pipeline: str) -> None:
        pass

    def endpoints(self, namespace: str, pipeline: str) -> Mapping[str, str]:
        return {}

    def exists(self, namespace: str, pipeline: str) -> bool:
        return False


def run(args: argparse.Namespace) -> int:
    """List retained data, or remove the data of one pipeline.

    Raises:
        CommandError: the existing pipelines are unknown, or a server does not answer.
    """
    try:
        servers = find_servers(args.data_dir, os.environ)
        if not servers.postgres or not servers.kafka:
            raise CommandError(
                "Kafka and Postgres are unknown: run the command while `tidemill up` runs, or set"
                " TIDEMILL_KAFKA_BROKERS and TIDEMILL_POSTGRES_URL"
            )
        entries = list(find_retained(servers, _existing_uids(servers, os.environ)))
        if args.remove:
            return _remove(servers, entries, args.remove, args.data_dir)
    except (TidemillError, ValueError) as error:
        raise CommandError(str(error)) from error
    print(json.dumps([asdict(entry) for entry in entries], indent=1) if args.output == "json" else _text(entries))
    return 0


def find_retained(servers: LiveServers, uids: Mapping[str, str]) -> Iterator[RetainedData]:
    """Yield the retained data of this cluster's deleted pipelines. `uids` are the uids of existing pipelines.

    Raises:
        TidemillError: a server does not answer.
    """
    kafka = _topics(servers)
    for schema, owner in owned_schemas(servers.platform.postgres).items():
        if owner.cluster != servers.platform.cluster_id or uids.get(f"{owner.namespace}/{owner.name}") == owner.uid:
            continue
        topics = kafka.observe([names.topic(owner.namespace, owner.name, kind) for kind in _KINDS])
        yield RetainedData(owner, schema, tuple(sorted(topics)), tuple(names.role(schema, part) for part in _ROLES))


def _topics(servers: LiveServers) -> KafkaTopics:
    platform = servers.platform
    return KafkaTopics(platform.kafka_brokers, config=platform.kafka_config, timeout_seconds=ANSWER_SECONDS)


def _existing_uids(servers: LiveServers, environ: Mapping[str, str]) -> Mapping[str, str]:
    if "KUBERNETES_SERVICE_HOST" in environ:
        # importing the API client is slow
        from tidemill_operator.actuators.kubernetes.api import PIPELINE, Api

        metadata = [item["metadata"] for item in Api().list(PIPELINE, None, metadata_only=True)]
        return {f"{pipeline['namespace']}/{pipeline['name']}": pipeline["uid"] for pipeline in metadata}
    if servers.uids is None:
        raise CommandError(
            "the existing pipelines are unknown: run the command while `tidemill up` runs, or in the operator's pod"
        )
    return servers.uids


def _remove(servers: LiveServers, entries: Sequence[RetainedData], key: str, data_dir: Path) -> int:
    entry = next((entry for entry in entries if entry.key == key), None)
    if entry is None:
        raise CommandError(f"--remove {key}: there is no retained data; see `tidemill status --retained`")
    postgres = PostgresSchemas(servers.platform.postgres)
    live = postgres.observe(entry.schema)
    spec = {**(dict(live.accepted) if live and live.accepted else {}), "reclaimPolicy": "Delete"}
    metadata = {"namespace": entry.owner.namespace, "name": entry.owner.name, "uid": entry.owner.uid}
    document: dict[str, Any] = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}
    actuators = Actuators(
        kafka=_topics(servers),
        postgres=postgres,
        secrets=FileSecrets(data_dir / "secrets"),
        runtime=_EmptyRuntime(),
    )
    outcomes = release(document, platform=servers.platform, actuators=actuators)
    failures = [outcome.message for outcome in outcomes if outcome.rank == Rank.FAILED]
    if failures:
        raise CommandError("; ".join(failures))
    removed = [outcome.name for outcome in outcomes if outcome.changed]
    print(f"{key}: removed {', '.join(removed)}" if removed else f"{key}: nothing had to be removed")
    return 0


def _text(entries: Sequence[RetainedData]) -> str:
    if not entries:
        return "nothing is retained"
    lines = []
    for entry in entries:
        lines += [
            f"{entry.key}, uid {entry.owner.uid or 'none'}",
            f"  schema: {entry.schema}",
            f"  roles: {', '.join(entry.roles)}",
            f"  topics: {', '.join(entry.topics) or 'none'}",
        ]
    return "\n".join([*lines, "to remove the data of a pipeline: tidemill status --retained --remove NAMESPACE/NAME"])
