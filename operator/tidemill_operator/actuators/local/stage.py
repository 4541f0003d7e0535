"""The environment of a Python stage on this machine: where the user's file is, and no login to Postgres."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tidemill_operator.plan.model import Workload

_NOT_FOR_CODE = ("TIDEMILL_POSTGRES_", "TIDEMILL_REDIS_", "TIDEMILL_SECRETS_")


def stage_environment(
    environment: Mapping[str, str], workload: Workload, *, process: str, maps: Path, home: Path | None
) -> dict[str, str]:
    """Return the environment of a process of a Python stage.

    Args:
        environment: the environment of any workload.
        workload: the stage.
        process: the name of the process. It keeps the name when it restarts, and so its partitions and its transaction.
        maps: the folder of the users' ConfigMaps, `<namespace>/<ConfigMap>/<file>`.
        home: the folder of the pipeline's file, or None if it is unknown. It has the file if there is no folder for the
            ConfigMap.
    """
    folder = maps / workload.namespace / workload.code
    if not folder.is_dir() and home is not None:
        folder = home
    kept = {name: value for name, value in environment.items() if not name.startswith(_NOT_FOR_CODE)}
    return {**kept, "TIDEMILL_INSTANCE": process, **({"TIDEMILL_STAGE_DIR": str(folder)} if workload.code else {})}
