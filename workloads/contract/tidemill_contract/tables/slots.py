"""`_slots`: unique numbers (slots) for the partitions of all topics of a pipeline.

Only pipelines with a list of topics have this table. In the pipeline's other tables, the column `partition` contains
slots instead of partition numbers.
"""

from __future__ import annotations

from tidemill_contract.tables.definition import Table, columns

TABLE = Table(
    "_slots",
    columns(
        ("slot", "integer PRIMARY KEY"),
        ("topic", "text NOT NULL"),
        ("partition", "integer NOT NULL"),
        ("reading", "boolean NOT NULL DEFAULT true"),
        ("added", "boolean NOT NULL DEFAULT false"),
    ),
    ("UNIQUE (topic, partition)",),
    writer_privileges="SELECT",
)
"""One row for each slot, which only the operator writes. `topic` is empty if the slot's partition is unknown. `reading`
is false after the topic leaves the list, because the partition is no longer read. `added` means that the slot is newer
than the pipeline, so the partition is read from the first record."""


def active_slots(schema: str) -> str:
    """Select the slot of each partition that processors read.

    Columns: slot, topic, partition, whether the slot was added to an existing pipeline.
    """
    return f"SELECT slot, topic, partition, added FROM {schema}._slots WHERE reading ORDER BY slot"


def topic_partition(schema: str) -> str:
    """Select the topic and the partition of a slot.

    Parameter: slot. Columns: topic, partition.
    """
    return f"SELECT topic, partition FROM {schema}._slots WHERE slot = %s"


def active_condition(schema: str, column: str) -> str:
    """Return an SQL condition that is true if processors read the partition with the slot in `column`."""
    return f"EXISTS (SELECT FROM {schema}._slots s WHERE s.slot = {column} AND s.reading)"
