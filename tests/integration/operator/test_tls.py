"""Tests of operator and workloads with a real Postgres and Redis over TLS, certified by a private authority."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from bench import Bench, MakeBench
from kube.pki import Authority, Pair
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_operator.actuators.postgres.session import open_session
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.laptop.servers import PostgresAddress, Server, Servers, postgres
from tidemill_operator.laptop.servers.redis import connection_error
from tidemill_operator.processes.child import Command
from tidemill_operator.processes.ports import Ports

pytestmark = pytest.mark.integration

WORKLOADS = {"tidemill_processor": "postgres redis", "tidemill_api": "postgres redis", "tidemill_ingest": "redis"}


def config(name: str) -> PipelineConfig:
    """Return a pipeline with one aggregation, whose API needs no key."""
    metrics = [{"name": "events", "function": "count"}]
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 1},
                "fields": [
                    {"name": "ts", "type": "timestamp", "required": True},
                    {"name": "country", "type": "string"},
                ],
                "eventTime": {"field": "ts", "idleTimeout": "2s"},
            },
            "aggregations": [
                {
                    "name": "by_country",
                    "groupBy": ["country"],
                    "window": {"type": "tumbling", "size": "1m"},
                    "metrics": metrics,
                }
            ],
            "processor": {"flushInterval": "100ms"},
            "auth": {"required": False},
        }
    )
    refs = (AggregationRef(name="by_country"),)
    return PipelineConfig(namespace="tests", name=name, generation=1, spec=spec, aggregations=refs)


class SecuredServers:
    """The session's Kafka, and a Postgres and a Redis with certificates of a private authority.

    Attributes:
        servers: the addresses, with the host name in the certificate.
        ca, other: the certificates of the authority, and of an authority that signed nothing.
    """

    def __init__(self, kafka: str, own_servers: Callable[..., Servers], folder: Path) -> None:
        authority = Authority(folder / "pki")
        pair = authority.issue("server", common_name="server", names=["localhost"])
        self.ca, self.other = authority.certificate, Authority(folder / "other").certificate
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self._postgres(pair).items():
                patch.setitem(postgres._SETTINGS, name, value)
            own_postgres = own_servers(needs=("postgres",))
        at = replace(own_postgres.postgres, host="localhost", sslmode="verify-full", sslrootcert=str(self.ca))
        self.redis = self._redis(pair, folder)
        url = f"rediss://localhost:{self.redis.port}/0"
        self.servers = Servers(kafka=kafka, postgres=at, redis=url, redis_ca=str(self.ca))

    def _postgres(self, pair: Pair) -> dict[str, str]:
        if user := postgres.server_user():
            # With pytest-xdist, the folder of a worker is one level deeper.
            for folder in (pair.key.parent, *pair.key.parent.parents):
                if folder.stat().st_mode & 0o011 != 0o011:
                    folder.chmod(folder.stat().st_mode | 0o011)
            key = Path(shutil.copy(pair.key, pair.key.with_name("postgres.key")))
            shutil.chown(key, user)
        return {"ssl": "on", "ssl_cert_file": str(pair.certificate), "ssl_key_file": str(key if user else pair.key)}

    def _redis(self, pair: Pair, folder: Path) -> Server:
        port = Ports(folder / "ports.json").get("redis")
        files = {"cert-file": pair.certificate, "key-file": pair.key, "ca-cert-file": self.ca}
        settings = {"bind": "127.0.0.1", "port": "0", "tls-port": str(port), "tls-auth-clients": "no", "save": ""}
        settings |= {f"tls-{name}": str(file) for name, file in files.items()}
        program = str(shutil.which("redis-server"))
        arguments = [program, *(part for name, value in settings.items() for part in (f"--{name}", value))]
        url = f"rediss://localhost:{port}/0"
        server = Server(
            Command("redis", arguments, environment=os.environ),
            port=port,
            data_dir=folder,
            ready=lambda: not connection_error(url, str(self.ca)),
            ready_seconds=30.0,
        )
        server.start()
        return server

    def environment(self, ca: Path) -> dict[str, str]:
        """Return the environment of workloads, apart from addresses."""
        return {
            "TIDEMILL_POSTGRES_SSLMODE": "verify-full",
            "TIDEMILL_POSTGRES_CA": str(ca),
            "TIDEMILL_REDIS_CA": str(ca),
        }


@pytest.fixture(scope="module")
def secured(
    servers: Servers, own_servers: Callable[..., Servers], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SecuredServers]:
    secured = SecuredServers(servers.kafka, own_servers, tmp_path_factory.mktemp("tls"))
    yield secured
    secured.redis.stop()


def start_all(bench: Bench) -> dict[str, int]:
    """Start one process of each workload; return their indices."""
    for module in WORKLOADS:
        bench.start(module=module)
    return {module: index for index, module in enumerate(WORKLOADS)}


def test_every_connection_to_postgres_and_redis_uses_tls(secured: SecuredServers, make_bench: MakeBench) -> None:
    """An event that ingest accepts is counted and answered by the API."""
    with open_session(secured.servers.postgres, "looking") as session:
        assert session.rows("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [(True,)]
    bench = make_bench(config("tls"), at=secured.servers, **secured.environment(secured.ca))
    started = start_all(bench)
    for module, index in started.items():
        bench.eventually(lambda at=index: bench.health(at).get("status") == "healthy", what=f"{module} is healthy")
    at = f"http://127.0.0.1:{{}}/v1/pipelines/{bench.config.name}"
    body = json.dumps({"country": "NO", "ts": "2026-03-01T10:00:01Z"}).encode()
    headers = {"content-type": "application/json", "idempotency-key": "once"}
    sent = httpx.post(f"{at.format(bench.ports[2])}/events", content=body, headers=headers, timeout=20)
    assert sent.json()["accepted"] == 1
    bench.await_consumed(1)

    def answered() -> list[Any]:
        url = f"{at.format(bench.ports[1])}/aggregates/by_country?from=2026-03-01T10:00:00Z"
        return [row["events"] for row in httpx.get(url, timeout=20).json()["data"]]

    assert bench.eventually(answered, what="the API answers") == [1]
    query = "SELECT DISTINCT split_part(application_name, '/', 1), ssl FROM pg_stat_ssl JOIN pg_stat_activity"
    encrypted = dict(bench.query(f"{query} USING (pid) WHERE application_name LIKE 'tidemill-%%'"))
    assert encrypted == {"tidemill-api": True, "tidemill-processor": True}
    client = redis.Redis.from_url(secured.servers.redis, ssl_ca_certs=secured.servers.redis_ca)
    assert client.keys("tidemill/*"), "ingest and API have stored keys in Redis, which accepts only TLS"
    client.close()


def test_workloads_name_a_server_with_an_untrusted_certificate_and_the_remedy(
    secured: SecuredServers, make_bench: MakeBench
) -> None:
    """/health has the server and the remedy in the detail of the dependency."""
    bench = make_bench(config("tls-wrong"), at=secured.servers, **secured.environment(secured.other))
    ports = {"postgres": secured.servers.postgres.port, "redis": secured.redis.port}
    for module, index in start_all(bench).items():
        for server in WORKLOADS[module].split():

            def detail(at: int = index, of: str = server) -> str:
                dependency = bench.health(at).get("dependencies", {}).get(of, {})
                text = str(dependency.get("detail", "")) if dependency.get("status") == "down" else ""
                return text if "certificate" in text else ""

            def what(at: int = index, of: str = server, by: str = module) -> str:
                return f"{by} says why {of} is down, its health is {bench.health(at)}"

            text = bench.eventually(detail, what=what)
            assert "certificate verify failed" in text, text
            assert str(ports[server]) in text, text
            assert text.endswith(f"TIDEMILL_{server.upper()}_CA (chart: {server}.caSecret)"), text


def refused(at: PostgresAddress) -> TidemillError:
    """Return the operator's error when it refuses a server."""
    with pytest.raises(TidemillError) as raised, open_session(at, "looking"):
        pass
    return raised.value


def test_the_operator_names_an_untrusted_certificate_and_a_wrong_host_name(secured: SecuredServers) -> None:
    at = secured.servers.postgres
    error = refused(replace(at, sslrootcert=str(secured.other)))
    assert error.reason is Reason.UNREACHABLE
    assert f"looking: postgresql://localhost:{at.port}/tidemill has a certificate that is not trusted" in str(error)
    assert "TIDEMILL_POSTGRES_CA (chart: postgres.caSecret)" in str(error)
    assert "connect by a host name that is in the server's" in str(refused(replace(at, host="127.0.0.1")))


@pytest.mark.parametrize("server", ["Postgres", "Redis"])
def test_tidemill_up_refuses_an_untrusted_certificate_at_once(
    secured: SecuredServers, tmp_path: Path, server: str
) -> None:
    """The command does not wait as it does for a server that is still starting."""
    wrong = {"Postgres": secured.ca, "Redis": secured.ca, server: secured.other}
    environ = {
        **os.environ,
        "TIDEMILL_KAFKA_BROKERS": secured.servers.kafka,
        "TIDEMILL_POSTGRES_URL": replace(secured.servers.postgres, sslrootcert=str(wrong["Postgres"])).url,
        "TIDEMILL_REDIS_URL": secured.servers.redis,
        "TIDEMILL_REDIS_CA": str(wrong["Redis"]),
    }
    example = Path(__file__).parents[3] / "crds" / "examples" / "flights.yaml"
    words = ["up", "-f", str(example), "--data-dir", str(tmp_path / "data")]
    command = [sys.executable, "-m", "tidemill_operator.cli", *words]
    result = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode not in (0, -signal.SIGKILL)
    assert f"{server} at " in result.stderr
    assert f"TIDEMILL_{server.upper()}_CA" in result.stderr
