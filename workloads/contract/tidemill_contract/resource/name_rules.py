"""The rule for names that Postgres reserves for its own columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tidemill_contract.resource.faults import Fault

SYSTEM_COLUMNS = ("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid")
"""The system columns of every Postgres table. Fields and metrics may have these names, but group columns may not."""


def system_column_faults(group_by: Iterable[tuple[str, str]]) -> Iterator[Fault]:
    """Yield a fault for each group column that is named like a Postgres system column."""
    for path, name in group_by:
        if name in SYSTEM_COLUMNS:
            remedy = f"add a derive with another name, {{name: by_{name}, expression: {name}}}, and group by the derive"
            yield Fault(path, name, "every Postgres table already has a system column of this name", remedy)
