"""Describe a plan as plain data with a stable order and without secrets."""

from __future__ import annotations

import json
from typing import Any

from tidemill_operator.plan.changes import Change
from tidemill_operator.plan.external_inputs import ExternalInput, external_inputs
from tidemill_operator.plan.model import Connector, Plan, Schema, Topic, Workload


def describe(plan: Plan) -> dict[str, Any]:
    """Describe a plan."""
    return {
        "namespace": plan.namespace,
        "name": plan.name,
        "generation": plan.schema.generation,
        "reclaimPolicy": plan.reclaim,
        "topics": [describe_topic(item) for item in plan.topics],
        "schema": describe_schema(plan.schema),
        "workloads": [describe_workload(item) for item in plan.workloads],
        "config": json.loads(plan.config),
        **({"reads": [describe_input(item) for item in inputs]} if (inputs := external_inputs(plan)) else {}),
        **({"connectors": [describe_connector(item) for item in plan.connectors]} if plan.connectors else {}),
    }


def describe_input(item: ExternalInput) -> dict[str, Any]:
    """Describe a read object."""
    members = {"kind": item.kind, "name": item.name, "place": item.place, "secret": item.secret}
    return {member: text for member, text in members.items() if text}


def describe_topic(item: Topic) -> dict[str, Any]:
    """Describe a topic."""
    return {
        "name": item.name,
        "managed": item.managed,
        "partitions": item.partitions,
        "replicationFactor": item.replication_factor,
        "config": dict(sorted(item.config.items())),
        **({"kafka": ",".join(item.kafka.servers)} if item.kafka else {}),
    }


def describe_schema(item: Schema) -> dict[str, Any]:
    """Describe a schema."""
    return {
        "name": item.name,
        "roles": {"owner": item.owner, "writer": item.writer, "reader": item.reader},
        "tables": [
            {
                "name": table.name,
                "columns": {column.name: column.definition for column in table.columns},
                "constraints": list(table.constraints),
                "indexes": dict(table.indexes),
                "partitionBy": table.partition_by,
                "storage": table.storage,
                "grants": {"writer": table.writer_privileges, "reader": table.reader_privileges},
            }
            for table in item.tables
        ],
        "functions": [name for name, _ in item.functions],
        "aggregations": [
            {
                "name": row.name,
                "version": row.version,
                "table": row.table_name,
                "shape": json.loads(row.shape),
                "partitionDays": row.partition_days,
                "retentionMs": row.retention_ms,
            }
            for row in item.aggregations
        ],
        "eventsRetentionMs": item.events_retention_ms,
    }


def describe_workload(item: Workload) -> dict[str, Any]:
    """Describe a workload."""
    return {
        "name": item.name,
        "component": item.component,
        "pipeline": item.pipeline,
        "module": item.module,
        "replicas": item.replicas,
        "scaledElsewhere": item.externally_scaled,
        "environment": dict(sorted(item.environment.items())),
        "configs": sorted(item.configs),
        "secrets": {pipeline: list(names) for pipeline, names in sorted(item.secrets.items())},
        "ports": dict(item.ports),
        "readiness": {"path": item.readiness.path, "periodSeconds": item.readiness.period_seconds},
        "liveness": {"path": item.liveness.path, "periodSeconds": item.liveness.period_seconds},
        "resources": {kind: dict(amounts) for kind, amounts in item.resources.items()},
    }


def describe_connector(item: Connector) -> dict[str, Any]:
    """Describe a connector."""
    return {"name": item.name, "paused": item.paused, "config": dict(item.config)}


def describe_change(item: Change) -> dict[str, Any]:
    """Describe a change."""
    differences = []
    for difference in item.differences:
        members = {"member": difference.member, "before": difference.before, "after": difference.after}
        differences.append({key: value for key, value in members.items() if value is not None})
    return {"action": item.action, "kind": item.kind, "name": item.name, "differences": differences}
