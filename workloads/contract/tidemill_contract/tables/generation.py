"""`_generation`: the generation of the spec that may write.

A processor with an older config stops before it commits. `accepted` is that spec as written. It stays in force when a
newer one is refused.
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
