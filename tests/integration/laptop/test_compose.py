"""Test of the services of docker-compose.dev.yaml, run as processes instead of containers."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
import redis
from confluent_kafka.admin import AdminClient

from compose.run import running

pytestmark = [pytest.mark.integration, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[3]


def test_the_servers_for_development_are_healthy_and_accept_their_logins(server_folder: Path) -> None:
    """The health checks are those of the file, and the logins those in its first comment."""
    with running(ROOT / "docker-compose.dev.yaml", server_folder, {}) as services:
        at = services.stage.addresses
        assert set(services.seconds) == set(at) == {"dev-kafka", "dev-postgres", "dev-redis"}
        url = f"postgresql://tidemill:tidemill@{at['dev-postgres']}:5432/tidemill"
        with psycopg.connect(url) as connection:
            assert connection.execute("SHOW fsync").fetchone() == ("off",)
        metadata = AdminClient({"bootstrap.servers": f"{at['dev-kafka']}:9092"}).list_topics(timeout=20)
        assert [broker.host for broker in metadata.brokers.values()] == [at["dev-kafka"]]
        client = redis.Redis.from_url(f"redis://{at['dev-redis']}:6379/0")
        assert client.ping()
        client.close()
        pids = [child.pid for child in services.children.values()]
    assert all(pids)
    assert not any(child.running for child in services.children.values())
