"""Where Kafka, Postgres and Redis are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from tidemill_contract import trust

_VARIABLE, _CA = "TIDEMILL_POSTGRES_URL", "TIDEMILL_POSTGRES_CA"
_CHECKING = ("require", "verify-ca", "verify-full")
_MODES = ("disable", "allow", "prefer", *_CHECKING)
# Parameters of which nothing depends; ours are in their place.
_LEFT_OUT = ("application_name", "connect_timeout", "fallback_application_name", "keepalives", "tcp_user_timeout")


@dataclass(frozen=True)
class PostgresAddress:
    """A Postgres database and the login that administers it.

    Attributes:
        sslmode: libpq's: whether connections are encrypted, and what is asked of the server's certificate.
        sslrootcert: PEM file of the authorities that may have signed it; empty: libpq's own place.
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
        """As a URL, password included: for clients, never for logs."""
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        trusted = f"&sslrootcert={quote(self.sslrootcert, safe='')}" if self.sslrootcert else ""
        database = quote(self.database, safe="")
        return f"postgresql://{login}@{self.host}:{self.port}/{database}?sslmode={self.sslmode}{trusted}"

    @property
    def tls(self) -> dict[str, Any]:
        """Settings of libpq: whether connections are encrypted, and whose certificates are trusted."""
        return {"sslmode": self.sslmode, **({"sslrootcert": self.sslrootcert} if self.sslrootcert else {})}

    @property
    def public_url(self) -> str:
        """As a URL without the login."""
        return f"postgresql://{self.host}:{self.port}/{quote(self.database, safe='')}"

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> PostgresAddress | None:
        """Read TIDEMILL_POSTGRES_URL and TIDEMILL_POSTGRES_CA; None if there is no such URL.

        Raises:
            ValueError: a value is wrong; the message names the variable.
        """
        url = environ.get(_VARIABLE)
        return cls.from_url(url, ca=environ.get(_CA, "")) if url else None

    @classmethod
    def from_url(cls, url: str, *, ca: str = "") -> PostgresAddress:
        """Read `postgresql://user:password@host:port/database?sslmode=…&sslrootcert=…`.

        Args:
            url: as libpq writes it.
            ca: PEM file of the authorities that are trusted; goes before `sslrootcert`.

        Raises:
            ValueError: it is not such a URL, or says something that we could not follow.
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
            # Left out in silence, a connection would be another than the one that was asked for.
            raise ValueError(
                f"{_VARIABLE}: the parameter {name} is not supported; remove it (sslmode, sslrootcert are)"
            )
    if ca:
        return trust.authority(_CA, ca)
    return trust.authority(f"{_VARIABLE}: sslrootcert", said.get("sslrootcert", ""))


def _mode(said: Mapping[str, str], trusted: str) -> str:
    mode = said.get("sslmode") or ("verify-full" if trusted else "prefer")
    if mode not in _MODES:
        raise ValueError(f"{_VARIABLE}: sslmode {mode!r} is none of {', '.join(_MODES)}")
    if trusted and mode not in _CHECKING:
        raise ValueError(
            f"{_VARIABLE}: sslmode={mode} does not look at the server's certificate, so the authority in {trusted}"
            " would be for nothing: write sslmode=verify-full"
        )
    return mode
