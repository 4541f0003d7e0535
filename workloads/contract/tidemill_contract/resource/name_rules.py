"""Names that Postgres keeps for itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tidemill_contract.resource.faults import Fault

SYSTEM_COLUMNS = ("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid")
"""Columns that every table of Postgres has; no other one may be called so. Fields and metrics may: they are none."""


def system_columns(group_by: Iterable[tuple[str, str]]) -> Iterator[Fault]:
    """Group columns, as (path, name), that no table can have."""
    for path, name in group_by:
        if name in SYSTEM_COLUMNS:
            remedy = f"derive it under another name, {{name: by_{name}, expression: {name}}}, and group by that"
            yield Fault(path, name, "every table of Postgres has a column of this name already", remedy)
