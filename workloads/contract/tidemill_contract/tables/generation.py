"""`_generation`: the spec that may write.

The spec generation that may write: a processor with an older config stops before it commits. `accepted` is that spec
as it was written: it runs on when a newer one has to be refused.
"""

from __future__ import annotations

from tidemill_contract.tables.definition import Table, columns

TABLE = Table(
    "_generation",
    columns(
        ("only", 'boolean PRIMARY KEY DEFAULT true CHECK ("only")'),
        ("generation", "bigint NOT NULL"),
        ("accepted", "jsonb"),
    ),
    writer="SELECT",
)


def read(schema: str) -> str:
    """Row: the generation."""
    return f"SELECT generation FROM {schema}._generation"
