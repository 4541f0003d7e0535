"""`_slots`: the partitions of a pipeline with a list of topics. Only such pipelines have this table.

A slot is a number for one partition of one topic. In all tables of such a pipeline, the column `partition` is the
number of a slot. A slot is never used for another partition. Pipelines with one topic have no slots: their column
`partition` is the partition in the topic.
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
    writer="SELECT",
)
"""One row for each slot. Only the operator writes it.

- `topic`: empty if the slot was deleted and created again, so that nobody knows which partition it was.
- `reading`: whether the partition is read. It is not if its topic was taken out of the list, or certainly does not
  exist.
- `added`: whether the pipeline ran before the slot existed, so that the partition is read from its start, whatever
  `startFrom` says.
"""


def reading(schema: str) -> str:
    """Select the slots that are read. Columns: slot, topic, partition, added."""
    return f"SELECT slot, topic, partition, added FROM {schema}._slots WHERE reading ORDER BY slot"


def place(schema: str) -> str:
    """Select the topic and the partition of a slot, whether it is read or not.

    Parameter: slot. Columns: topic, partition.
    """
    return f"SELECT topic, partition FROM {schema}._slots WHERE slot = %s"


def reads(schema: str, column: str) -> str:
    """Return the condition that the slot in `column` is read."""
    return f"EXISTS (SELECT FROM {schema}._slots s WHERE s.slot = {column} AND s.reading)"
