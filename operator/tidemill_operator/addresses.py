"""The addresses of Kafka, Postgres and Redis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from tidemill_contract import tls

_VARIABLE, _CA = "TIDEMILL_POSTGRES_URL", "TIDEMILL_POSTGRES_CA"
_CHECKING_MODES = ("require", "verify-ca", "verify-full")
_MODES = ("disable", "allow", "prefer", *_CHECKING_MODES)
# Connection parameters that Tidemill sets itself, so their values in the URL are ignored.
_IGNORED = ("application_name", "connect_timeout", "fallback_application_name", "keepalives", "tcp_user_timeout")


@dataclass(frozen=True)
class PostgresAddress:
    """A Postgres database and the login that administers it.

    Attributes:
        sslrootcert: PEM file of trusted certificate authorities (empty: libpq's default file).
    """

    host: str
    port: int
    database: str
    user: str
    password: str = field(repr=False)
    sslmode: str = "prefer"
    sslrootcert: str = ""

    @property
    def url(self) -> str:
        """Return the URL with the password, which must not be logged."""
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        certificate_parameter = f"&sslrootcert={quote(self.sslrootcert, safe='')}" if self.sslrootcert else ""
        database = quote(self.database, safe="")
        return f"postgresql://{login}@{self.host}:{self.port}/{database}?sslmode={self.sslmode}{certificate_parameter}"

    @property
    def tls(self) -> dict[str, Any]:
        """Return libpq's TLS settings."""
        return {"sslmode": self.sslmode, **({"sslrootcert": self.sslrootcert} if self.sslrootcert else {})}

    @property
    def public_url(self) -> str:
        """Return the URL without the login."""
        return f"postgresql://{self.host}:{self.port}/{quote(self.database, safe='')}"

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> PostgresAddress | None:
        """Read the address from TIDEMILL_POSTGRES_URL and TIDEMILL_POSTGRES_CA.

        Return None if TIDEMILL_POSTGRES_URL is not set.

        Raises:
            ValueError: a variable is invalid.
        """
        url = environ.get(_VARIABLE)
        return cls.from_url(url, ca=environ.get(_CA, "")) if url else None

    @classmethod
    def from_url(cls, url: str, *, ca: str = "") -> PostgresAddress:
        """Parse `postgresql://user:password@host:port/database?sslmode=…&sslrootcert=…`.

        `ca` is a PEM file of trusted authorities, which overrides the URL's `sslrootcert`.

        Raises:
            ValueError: the URL is invalid, or has an unsupported parameter.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("postgresql", "postgres") or not parts.hostname or not parts.username:
            raise ValueError("TIDEMILL_POSTGRES_URL: write it as postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
        parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
        root_certificate = _root_certificate(parameters, ca)
        return cls(
            host=parts.hostname,
            port=parts.port or 5432,
            database=unquote(parts.path.lstrip("/")) or "postgres",
            user=unquote(parts.username),
            password=unquote(parts.password or ""),
            sslmode=_mode(parameters, root_certificate),
            sslrootcert=root_certificate,
        )


def _root_certificate(parameters: Mapping[str, str], ca: str) -> str:
    for name in parameters:
        if name not in ("sslmode", "sslrootcert") and not name.startswith(_IGNORED):
            raise ValueError(
                f"{_VARIABLE}: the parameter {name} is not supported; remove it (supported: sslmode, sslrootcert)"
            )
    if ca:
        return tls.ca_path(_CA, ca)
    return tls.ca_path(f"{_VARIABLE}: sslrootcert", parameters.get("sslrootcert", ""))


def _mode(parameters: Mapping[str, str], ca_file: str) -> str:
    mode = parameters.get("sslmode") or ("verify-full" if ca_file else "prefer")
    if mode not in _MODES:
        raise ValueError(f"{_VARIABLE}: sslmode {mode!r} is not one of {', '.join(_MODES)}")
    if ca_file and mode not in _CHECKING_MODES:
        raise ValueError(
            f"{_VARIABLE}: sslmode={mode} does not check the server's certificate, so the authority in {ca_file}"
            " would have no effect: write sslmode=verify-full"
        )
    return mode
