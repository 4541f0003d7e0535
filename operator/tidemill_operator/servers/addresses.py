"""Where Kafka, Postgres and Redis are."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote, unquote, urlsplit


@dataclass(frozen=True)
class PostgresAddress:
    """A Postgres database and the login that administers it."""

    host: str
    port: int
    database: str
    user: str
    password: str = field(repr=False)
    sslmode: str = "prefer"

    @property
    def url(self) -> str:
        """As a URL, password included: for clients, never for logs."""
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        return f"postgresql://{login}@{self.host}:{self.port}/{quote(self.database, safe='')}?sslmode={self.sslmode}"

    @property
    def public_url(self) -> str:
        """As a URL without the login."""
        return f"postgresql://{self.host}:{self.port}/{quote(self.database, safe='')}"

    @classmethod
    def from_url(cls, url: str) -> PostgresAddress:
        """Read `postgresql://user:password@host:port/database?sslmode=…`.

        Raises:
            ValueError: it is not such a URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("postgresql", "postgres") or not parts.hostname or not parts.username:
            raise ValueError("TIDEMILL_POSTGRES_URL: write it as postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
        return cls(
            host=parts.hostname,
            port=parts.port or 5432,
            database=unquote(parts.path.lstrip("/")) or "postgres",
            user=unquote(parts.username),
            password=unquote(parts.password or ""),
            sslmode=parse_qs(parts.query).get("sslmode", ["prefer"])[0],
        )
