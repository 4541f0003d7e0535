"""How the time-partitioned tables of a pipeline are cut; operator and processor must agree on it."""

from __future__ import annotations

DAY_MS = 86_400_000
MAX_PARTITION_TABLES = 400


def partition_days(retention_ms: int) -> int:
    """Width of a time partition in days: at least one, and few enough tables for the whole retention."""
    return max(1, -(-retention_ms // DAY_MS) // MAX_PARTITION_TABLES)
