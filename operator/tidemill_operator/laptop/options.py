"""The command-line options of `up`, and the settings that follow from them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tidemill_operator.laptop.ports import WantedPorts
from tidemill_operator.laptop.servers import Servers
from tidemill_operator.laptop.servers.connect import secret_reference
from tidemill_operator.settings import Platform

_RESILIENCE_FILE = Path("config/resilience.yaml")


@dataclass(frozen=True)
class Options:
    """The command-line options of `up`.

    Attributes:
        ready_file: the file for the endpoints of ready pipelines, or None for no file.
        targets_file: the file for the scrape targets of Prometheus, or None for no file.
        resilience_file: the file with settings of circuit breakers, retries and timeouts, or None for the default file.
    """

    data_dir: Path
    ready_file: Path | None
    ports: WantedPorts
    resilience_file: Path | None
    host: str = "127.0.0.1"
    targets_file: Path | None = None

    @classmethod
    def of(cls, args: argparse.Namespace) -> Options:
        """Create the options from parsed arguments."""
        return cls(
            data_dir=args.data_dir.absolute(),
            ready_file=args.ready_file.absolute() if args.ready_file else None,
            ports=WantedPorts.of(args),
            resilience_file=args.resilience,
            host=args.host,
            targets_file=args.targets_file.absolute() if args.targets_file else None,
        )


def platform_of(options: Options, servers: Servers, environ: Mapping[str, str]) -> Platform:
    """Return the platform's settings with the addresses of the running servers.

    Raises:
        ValueError: a TIDEMILL_ variable has a wrong value.
    """
    platform = Platform.from_env({**environ, "TIDEMILL_RUNTIME": "local"})
    return replace(
        platform,
        connect_secrets=platform.connect_secrets if platform.connect_url else secret_reference(options.data_dir),
        kafka_brokers=servers.kafka,
        postgres=servers.postgres,
        redis_url=servers.redis,
        ports={"processor": 0, **options.ports.preferred},
    )


def workload_addresses(options: Options, servers: Servers, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of all workloads: the servers' addresses, without the administrator's login."""
    resilience_file = _resilience_file(options, environ)
    postgres = servers.postgres
    addresses = {
        "TIDEMILL_KAFKA_BROKERS": servers.kafka,
        "TIDEMILL_POSTGRES_HOST": postgres.host,
        "TIDEMILL_POSTGRES_PORT": str(postgres.port),
        "TIDEMILL_POSTGRES_DATABASE": postgres.database,
        "TIDEMILL_POSTGRES_SSLMODE": postgres.sslmode,
        "TIDEMILL_POSTGRES_CA": postgres.sslrootcert,
        "TIDEMILL_REDIS_URL": servers.redis,
        "TIDEMILL_REDIS_CA": servers.redis_ca,
    }
    if resilience_file is not None:
        addresses["TIDEMILL_RESILIENCE_FILE"] = str(resilience_file)
    return addresses


def _resilience_file(options: Options, environ: Mapping[str, str]) -> Path | None:
    file = options.resilience_file or environ.get("TIDEMILL_RESILIENCE_FILE")
    if file:
        return Path(file).absolute()
    return _RESILIENCE_FILE.absolute() if _RESILIENCE_FILE.exists() else None
