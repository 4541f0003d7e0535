"""`_generation`: one row about the accepted spec.

`generation` is the generation of the spec. `accepted` is the spec as the user wrote it. A processor with an older
generation stops without a commit.
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
    writer_privileges="SELECT",
)


def read(schema: str) -> str:
    """Select the generation.

    Column: generation.
    """
    return f"SELECT generation FROM {schema}._generation"
