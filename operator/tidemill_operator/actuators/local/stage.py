"""Creates the environment variables of a Python stage on this machine, without the Postgres login."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_HIDDEN_PREFIXES = ("TIDEMILL_POSTGRES_", "TIDEMILL_REDIS_", "TIDEMILL_SECRETS_")


def stage_environment(environment: Mapping[str, str], *, process: str, folder: Path | None) -> dict[str, str]:
    """Return the environment variables of a process of a Python stage.

    Args:
        environment: the environment variables of the workload.
        process: the name of the process. A restarted process keeps its name, and so its partitions and its
            transactional id.
        folder: the folder with the user's file, or None if the file has an absolute path.
    """
    kept = {name: value for name, value in environment.items() if not name.startswith(_HIDDEN_PREFIXES)}
    return {**kept, "TIDEMILL_INSTANCE": process, **({} if folder is None else {"TIDEMILL_STAGE_DIR": str(folder)})}
