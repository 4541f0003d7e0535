"""Tests of certificates of Postgres and Redis: read and refused settings, and the files of pods."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from tidemill_chassis.health import Dependency, health_report
from tidemill_contract.runtime import WorkloadSettings
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.cluster_settings import ClusterSettings
from tidemill_operator.settings import Platform

URL = "postgresql://me:pw@db.example/x"
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
CLUSTER = {
    "TIDEMILL_RUNTIME": "kubernetes",
    "TIDEMILL_POD_NAME": "o-1",
    "TIDEMILL_OPERATOR_NAMESPACE": "tidemill-system",
    **{f"TIDEMILL_IMAGE_{part}": "x:1" for part in ("INGEST", "PROCESSOR", "API")},
}


@pytest.fixture
def ca(tmp_path: Path) -> str:
    """Return the path of a file with a certificate, whose name must be escaped."""
    file = tmp_path / "our ca&.crt"
    file.write_text(PEM)
    return str(file)


@pytest.mark.parametrize(
    ("query", "with_variable", "mode"),
    [
        ("?sslmode=verify-ca&sslrootcert={ca}", False, "verify-ca"),
        ("?sslrootcert={ca}", False, "verify-full"),
        ("", True, "verify-full"),
        ("?sslmode=require", True, "require"),
    ],
    ids=[
        "both in the URL",
        "an authority alone means verify-full",
        "the variable means verify-full",
        "the mode of the URL counts",
    ],
)
def test_the_authority_of_a_server_is_read_and_kept(ca: str, query: str, with_variable: bool, mode: str) -> None:
    """The URL or the variable names the file of the authority. The URL of the address keeps the file."""
    environ = {"TIDEMILL_POSTGRES_URL": URL + query.format(ca=quote(ca, safe="/"))}
    address = Platform.from_env({**environ, **({"TIDEMILL_POSTGRES_CA": ca} if with_variable else {})}).postgres
    assert (address.sslmode, address.sslrootcert) == (mode, ca)
    assert address.tls == {"sslmode": mode, "sslrootcert": ca}
    assert PostgresAddress.from_url(address.url) == address


WRONG: list[tuple[dict[str, str], str]] = [
    ({"TIDEMILL_POSTGRES_URL": f"{URL}?sslmode=prefer&sslrootcert=CA"}, "write sslmode=verify-full"),
    ({"TIDEMILL_POSTGRES_URL": f"{URL}?sslmode=full"}, "sslmode 'full' is not one of disable, allow, prefer, require"),
    ({"TIDEMILL_POSTGRES_URL": f"{URL}?sslrootcert=/no/ca.crt"}, "there is no file /no/ca.crt"),
    ({"TIDEMILL_POSTGRES_URL": URL, "TIDEMILL_POSTGRES_CA": "/no/ca.crt"}, "TIDEMILL_POSTGRES_CA: there is no file"),
    ({"TIDEMILL_POSTGRES_URL": f"{URL}?sslcert=/my.crt"}, "the parameter sslcert is not supported; remove it"),
    ({"TIDEMILL_REDIS_URL": "redis://r/0", "TIDEMILL_REDIS_CA": "CA"}, "begin the URL with rediss://"),
    ({"TIDEMILL_REDIS_URL": "rediss://r/0", "TIDEMILL_REDIS_CA": "/no/ca.crt"}, "TIDEMILL_REDIS_CA: there is no file"),
]


@pytest.mark.parametrize(("environ", "message"), WRONG, ids=[row[1] for row in WRONG])
def test_a_setting_that_would_have_no_effect_is_refused(ca: str, environ: dict[str, str], message: str) -> None:
    """An unused authority, a missing file and a parameter that would be ignored are errors."""
    with pytest.raises(ValueError, match="TIDEMILL_") as raised:
        Platform.from_env({name: value.replace("CA", quote(ca, safe="/")) for name, value in environ.items()})
    assert message in str(raised.value)
    assert "pw" not in str(raised.value).replace(ca, "")


def test_parameters_without_effect_on_trust_are_accepted() -> None:
    """Providers add such parameters to their URLs."""
    assert (
        PostgresAddress.from_url(f"{URL}?connect_timeout=10&application_name=x&keepalives_idle=5").sslmode == "prefer"
    )


def test_workloads_refuse_a_missing_file() -> None:
    """Workloads fail at their start, and not at the first connection."""
    with pytest.raises(ValueError, match="TIDEMILL_POSTGRES_CA: there is no file /no"):
        WorkloadSettings.from_env({"TIDEMILL_POSTGRES_CA": "/no"})


def test_pods_get_the_certificates(ca: str) -> None:
    """The Secret of connections has the texts of the files that the operator reads."""
    environ = {**CLUSTER, "TIDEMILL_POSTGRES_URL": URL, "TIDEMILL_POSTGRES_CA": ca}
    environ |= {"TIDEMILL_REDIS_URL": "rediss://r/0", "TIDEMILL_REDIS_CA": ca}
    placement = ClusterSettings.from_env(Platform.from_env(environ), environ).placement
    assert placement.environment["TIDEMILL_POSTGRES_SSLMODE"] == "verify-full"
    assert placement.connections == {"redis-url": "rediss://r/0", "postgres-ca.crt": PEM, "redis-ca.crt": PEM}


def test_a_file_that_pods_cannot_read_is_refused(tmp_path: Path) -> None:
    """A file beside the operator is refused, and a file without a certificate."""
    redis = {**CLUSTER, "TIDEMILL_REDIS_URL": "rediss://r/0?ssl_ca_certs=/ca.crt"}
    with pytest.raises(ValueError, match=r"ssl_ca_certs=/ca.crt names a file .* \(chart: redis.caSecret\)"):
        ClusterSettings.from_env(Platform.from_env(redis), redis)
    (tmp_path / "ca.der").write_text("no PEM")
    postgres = {**CLUSTER, "TIDEMILL_POSTGRES_URL": URL, "TIDEMILL_POSTGRES_CA": str(tmp_path / "ca.der")}
    with pytest.raises(ValueError, match=r"TIDEMILL_POSTGRES_CA: .*ca.der contains no certificate in PEM form"):
        ClusterSettings.from_env(Platform.from_env(postgres), postgres)


ERRORS = [
    ("postgres", 'at "db", port 5432 failed: SSL error: certificate verify failed', "TIDEMILL_POSTGRES_CA"),
    ("postgres", 'server certificate for "db" does not match host name "10.0.0.1"', "by a host name that is in"),
    (
        "redis",
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed (_ssl.c:1006)",
        "redis.caSecret",
    ),
    ("redis", "certificate verify failed: IP address mismatch, certificate is not valid for '127.0.0.1'", "by a host"),
    ("kafka", "SSL handshake failed: error:0A000086:SSL routines::certificate verify failed", "ssl.ca.pem"),
    ("postgres", "connection refused", ""),
]


@pytest.mark.parametrize(("server", "error", "remedy"), ERRORS, ids=[row[1][-30:] for row in ERRORS])
def test_health_names_the_remedy_for_a_certificate_error(server: str, error: str, remedy: str) -> None:
    """The remedy is added to a long message of the client too."""
    detail = health_report("api", [Dependency(server, False, True, error + " x" * 300)])[1]["dependencies"][server][
        "detail"
    ]
    assert len(detail) <= 300
    assert (remedy in detail.partition("; ")[2]) if remedy else "; " not in detail
