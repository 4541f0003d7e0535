"""A pipeline that counts events per hour and group `k`, and an API process over windows that SQL inserted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx

from bench import Bench
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig

BASE = 1_700_000_000_000 // 3_600_000 * 3_600_000
"""Start of the window that all groups have, in epoch milliseconds."""
PATH = "/aggregates/by_k"
QUICK_RECOVERY = {
    "TIDEMILL_RESILIENCE__BREAKERS__DATABASE__OPEN_SECONDS": "3",
    "TIDEMILL_RESILIENCE__BREAKERS__REDIS__OPEN_SECONDS": "3",
    "TIDEMILL_RESILIENCE__RETRIES__DATABASE__INITIAL_SECONDS": "0.1",
}


def hourly_counts(name: str, *, auth: bool = False, ttl: str = "200ms") -> PipelineConfig:
    """Return a pipeline that counts events per hour and `k`. `ttl` is that of the cache; `auth` requires keys."""
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 1},
                "fields": [{"name": "ts", "type": "timestamp", "required": True}, {"name": "k", "type": "string"}],
                "eventTime": {"field": "ts"},
            },
            "aggregations": [
                {
                    "name": "by_k",
                    "groupBy": ["k"],
                    "window": {"type": "tumbling", "size": "1h"},
                    "metrics": [{"name": "n", "function": "count"}],
                }
            ],
            "api": {"cacheTtl": ttl},
            "auth": {"required": auth},
        }
    )
    return PipelineConfig(
        namespace="tests", name=name, generation=1, spec=spec, aggregations=(AggregationRef(name="by_k"),)
    )


def insert_windows(bench: Bench, groups: int = 20) -> None:
    """Insert one window for each group `k1`, `k2`, …; the group `kN` has N events."""
    bench.query("SELECT {s}.ensure_partition('by_k_v1', %s, 30)", (BASE // 86_400_000,))
    bench.query(
        "INSERT INTO {s}.by_k_v1 (k, window_start, _rev, _count)"
        " SELECT 'k' || g, to_timestamp(%s / 1000.0), 1, g FROM generate_series(1, %s) AS g RETURNING 1",
        (BASE, groups),
    )


@contextlib.contextmanager
def serving(bench: Bench, **environment: str) -> Iterator[httpx.Client]:
    """Start an API process, and yield a client whose base URL is the pipeline's."""
    process = bench.start(0, module="tidemill_api", **(QUICK_RECOVERY | environment))
    bench.eventually(lambda: bench.health().get("status") == "healthy", seconds=60, what="the API is healthy")
    base = f"http://127.0.0.1:{bench.ports[-1]}/v1/pipelines/{bench.config.name}"
    with httpx.Client(base_url=base, timeout=35) as client:
        yield client
    process.terminate()
    assert process.wait(20) == 0, "the API exits with status 0 on SIGTERM"


def get_beside_pipeline(client: httpx.Client, path: str) -> httpx.Response:
    """Return the answer to a path of the same process that is not below the pipeline's."""
    return httpx.get(client.base_url.copy_with(path=path))


def dependency(bench: Bench, name: str) -> dict[str, Any]:
    """Return the state of a dependency, such as `postgres`, from /health."""
    return dict(bench.health()["dependencies"][name])
