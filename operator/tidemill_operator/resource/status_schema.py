"""The OpenAPI schema of the resource's status."""

from __future__ import annotations

from typing import Any


def _text(description: str, longest: int = 256, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, "maxLength": longest, **more}


def _integer(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "integer", "format": "int64", "description": description, **more}


def _time(description: str) -> dict[str, Any]:
    return {"type": "string", "format": "date-time", "description": description, "maxLength": 40}


def _object(description: str, properties: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "description": description, "properties": properties}
    return schema | ({"required": list(required)} if required else {})


def _list_by_key(key: str, description: str, most: int, item: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "array",
        "description": description,
        "maxItems": most,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": [key],
        "items": item,
    }


def _scaling(description: str) -> dict[str, Any]:
    return _object(
        description,
        {
            "mode": _text("lag or external.", 16),
            "current": _integer("Number of replicas at the time of the decision."),
            "desired": _integer("Number of replicas that scaling has chosen."),
            "need": _integer("Number of replicas that the load requires, before any limit."),
            "lag": _integer("Number of unprocessed events."),
            "rate": {"type": "number", "description": "Arriving events per second."},
            "ratePerReplica": {"type": "number", "description": "Measured events per second of one busy replica."},
            "reason": _text("The reason, as one CamelCase word.", 64),
            "limitedBy": _text("The setting that makes `desired` differ from `need`, such as maxReplicas.", 64),
            "message": _text("An explanation of the reason.", 1024),
            "lastScaleTime": _time("When replicas were last changed."),
        },
    )


CONDITION = _object(
    "A condition of the pipeline.",
    {
        "type": _text(
            "Always: Ready (the pipeline works as specified), Progressing (a change is under way), TopicsReady, "
            "SchemaReady, ProcessorsReady, IngestReady, APIReady. If the spec has connectors or lookups: "
            "ConnectorsReady, LookupsReady. Only while true: Reconciling, Stalled, Suspended, ReconciliationPaused, "
            "EventsLost, QuotaUsedUp, WindowsFailing, FiguresUnavailable.",
            64,
        ),
        "status": {"type": "string", "description": "True, False or Unknown.", "enum": ["True", "False", "Unknown"]},
        "reason": _text("The reason, as one CamelCase word.", 128),
        "message": _text("An explanation of the reason.", 4096),
        "lastTransitionTime": _time("When status last changed."),
        "observedGeneration": _integer("The generation of the spec that the condition is about."),
    },
    ("type", "status", "reason", "lastTransitionTime"),
)

STATUS = _object(
    "The observed state, which only the operator writes.",
    {
        "observedGeneration": _integer("The generation of the spec that was last reconciled."),
        "conditions": _list_by_key("type", "The conditions of the pipeline.", 24, CONDITION),
        "endpoints": _object(
            "Base addresses.",
            {"ingest": _text("URL for sending events.", 512), "api": _text("URL for queries.", 512)},
        ),
        "topics": _list_by_key(
            "name",
            "Kafka topics, as observed.",
            16,
            _object(
                "A topic.",
                {
                    "name": _text("The topic's name.", 249),
                    "id": _text("Kafka's id of the topic, which changes if the topic is created again.", 64),
                    "partitions": _integer("Partitions."),
                    "replicationFactor": _integer("Copies of each partition."),
                    "managed": {"type": "boolean", "description": "Whether the operator may alter the topic."},
                    "kafka": _object(
                        "The Kafka cluster of the topic; absent for the platform's cluster.",
                        {
                            "bootstrapServers": _text("Addresses of the brokers.", 1024),
                            "secretRef": _object(
                                "The Secret with the login.", {"name": _text("Name of the Secret.", 253)}
                            ),
                        },
                    ),
                    "replicasChange": _object(
                        "The change of the topic's replicas that is under way.",
                        {
                            "targetReplicas": _integer("Number of copies that each partition will have."),
                            "state": _text(
                                "`pending` if the change cannot begin yet, or `ongoing` while replicas move.", 16
                            ),
                            "message": _text("The progress of the change, and what the change waits for.", 1024),
                        },
                    ),
                },
                ("name",),
            ),
        ),
        "rebalancedAt": _text(
            "The value of the annotation tidemill.dev/rebalance-at that requested the last completed rebalancing.", 256
        ),
        "credentials": _object(
            "The last rotation of the pipeline's passwords.",
            {
                "phase": _text("Staged, RollingOut, or Complete once the former passwords are disabled.", 32),
                "rotated": _text(
                    "The value of the annotation tidemill.dev/rotate-credentials that requested the rotation.", 256
                ),
            },
        ),
        "schema": _text("The Postgres schema.", 63),
        "aggregations": _list_by_key(
            "name",
            "Aggregations in force.",
            32,
            _object(
                "An aggregation.",
                {
                    "name": _text("The aggregation's name.", 41),
                    "version": _integer("The version from which the API answers queries."),
                    "closedUntil": _time("Windows that end by this time are final."),
                },
                ("name",),
            ),
        ),
        "connectors": _list_by_key(
            "name",
            "Connectors, as Kafka Connect reports them.",
            16,
            _object(
                "A connector.",
                {
                    "name": _text("Name of the connector in the spec.", 41),
                    "state": _text("RUNNING, PAUSED, STOPPED, FAILED, UNASSIGNED or RESTARTING.", 32),
                    "message": _text("The error of a failed connector.", 1024),
                    "tasks": _list_by_key(
                        "id",
                        "Tasks of the connector.",
                        64,
                        _object(
                            "A task.",
                            {
                                "id": _integer("The task's number."),
                                "state": _text("The task's state, such as RUNNING or FAILED.", 32),
                            },
                            ("id",),
                        ),
                    ),
                },
                ("name",),
            ),
        ),
        "replay": _object(
            "The last requested replay.",
            {
                "reader": _text("The replay's name.", 64),
                "phase": _text("Replaying, or Done after queries have switched to the versions of the replay.", 32),
                "versions": {
                    "type": "object",
                    "description": "The version that the replay fills, for each aggregation.",
                    "maxProperties": 32,
                    "additionalProperties": {"type": "integer", "format": "int64"},
                },
                "processed": _integer("Events that the replay has counted."),
                "left": _integer("Events that the replay still has to count."),
                "partitionsHandedOver": _integer(
                    "Number of partitions in which the live processors have taken over from the replay."
                ),
                "missed": _text(
                    "Offsets of events not found in the topic by the replay. Absent if all events were found.",
                    1024,
                ),
            },
        ),
        "scaling": _scaling("The last decision about the number of processors."),
        "stageScaling": _scaling("The last decision about the number of processes of the Python stage."),
        "replicas": _integer("Number of running processors, for the scale subresource."),
        "stageReplicas": _integer("Number of running processes of the Python stage; absent without a stage."),
        "selector": _text("Label selector of the processors, for the scale subresource.", 512),
        "lag": _integer("Unprocessed events in the topic, rounded to two significant digits."),
        "lagSeconds": _integer(
            "Seconds since the arrival of the oldest unprocessed event. Rounded up to 1, 2, 5, 10, 20 and so on."
        ),
        "stageLag": _integer(
            "Events in the source topic not yet processed by the Python stage. Rounded to two significant digits. "
            "Included in lag, and absent without a stage."
        ),
        "stageLagSeconds": _integer(
            "Seconds since the arrival of the oldest event not yet processed by the Python stage. Rounded up "
            "to 1, 2, 5, 10, 20 and so on."
        ),
        "freshness": _text(
            "Time from an event's arrival in Kafka to the commit of its result. Written like 10s, 4m or 2h. "
            "Rounded up, and absent while no event arrives.",
            16,
        ),
        "freshnessSeconds": {"type": "number", "description": "Freshness in seconds."},
        "watermarkAgeSeconds": _integer(
            "Seconds by which the watermark is behind the wall clock. Rounded up to 1, 2, 5, 10, 20 and so on."
        ),
        "figuresAt": _time(
            "Time of the last read of the processors' positions. Set only while Postgres does not answer. "
            "Lag and freshness are computed with these positions."
        ),
    },
)
