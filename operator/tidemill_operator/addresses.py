"""The addresses of Kafka, Postgres and Redis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from tidemill_contract import trust

_VARIABLE, _CA = "TIDEMILL_POSTGRES_URL", "TIDEMILL_POSTGRES_CA"
_CHECKING = ("require", "verify-ca", "verify-full")
_MODES = ("disable", "allow", "prefer", *_CHECKING)
# Connection parameters that Tidemill sets itself, so their values in the URL are ignored.
_LEFT_OUT = ("application_name", "connect_timeout", "fallback_application_name", "keepalives", "tcp_user_timeout")


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
        trusted = f"&sslrootcert={quote(self.sslrootcert, safe='')}" if self.sslrootcert else ""
        database = quote(self.database, safe="")
        return f"postgresql://{login}@{self.host}:{self.port}/{database}?sslmode={self.sslmode}{trusted}"

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
        said = dict(parse_qsl(parts.query, keep_blank_values=True))
        trusted = _trusted(said, ca)
        return cls(
            host=parts.hostname,
            port=parts.port or 5432,
            database=unquote(parts.path.lstrip("/")) or "postgres",
            user=unquote(parts.username),
            password=unquote(parts.password or ""),
            sslmode=_mode(said, trusted),
            sslrootcert=trusted,
        )


def _trusted(said: Mapping[str, str], ca: str) -> str:
    for name in said:
        if name not in ("sslmode", "sslrootcert") and not name.startswith(_LEFT_OUT):
            raise ValueError(
                f"{_VARIABLE}: the parameter {name} is not supported; remove it (supported: sslmode, sslrootcert)"
            )
    if ca:
        return trust.authority(_CA, ca)
    return trust.authority(f"{_VARIABLE}: sslrootcert", said.get("sslrootcert", ""))


def _mode(said: Mapping[str, str], trusted: str) -> str:
    mode = said.get("sslmode") or ("verify-full" if trusted else "prefer")
    if mode not in _MODES:
        raise ValueError(f"{_VARIABLE}: sslmode {mode!r} is not one of {', '.join(_MODES)}")
    if trusted and mode not in _CHECKING:
        raise ValueError(
            f"{_VARIABLE}: sslmode={mode} does not check the server's certificate, so the authority in {trusted}"
            " would have no effect: write sslmode=verify-full"
        )
    return mode
