"""TLS to Postgres and Redis: which certificates are trusted, and what to do where a server's is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

AUTHORITIES = {
    "postgres": "TIDEMILL_POSTGRES_CA (chart: postgres.caSecret)",
    "redis": "TIDEMILL_REDIS_CA (chart: redis.caSecret)",
    "kafka": "ssl.ca.pem of the client settings (chart: kafka.existingSecret)",
}
_OTHER_NAME = re.compile(r"does not match host ?name|(hostname|ip address) mismatch|not valid for", re.IGNORECASE)
_UNKNOWN = re.compile(r"certificate[ _]verify[ _]failed|unknown ca\b", re.IGNORECASE)


def remedy(server: str, error: str) -> str:
    """What to do about a certificate that was refused; empty if the error is of another kind.

    Args:
        server: postgres, redis or kafka.
        error: what its client says.
    """
    if server not in AUTHORITIES:
        return ""
    if _OTHER_NAME.search(error):
        return "connect by a name that the server's certificate has"
    if _UNKNOWN.search(error):
        return f"give the certificate of the authority that signed the server's by {AUTHORITIES[server]}"
    return ""


def redis_options(url: str, ca: str) -> dict[str, Any]:
    """What a Redis client needs besides the URL.

    Args:
        url: redis:// or rediss://.
        ca: PEM file of the authorities that are trusted; empty: those of the system.

    Raises:
        ValueError: there is an authority, and the URL is of a connection without TLS.
    """
    if not ca or not url:
        return {}
    if urlsplit(url).scheme != "rediss":
        raise ValueError("TIDEMILL_REDIS_CA: TIDEMILL_REDIS_URL is without TLS; begin it with rediss://, or unset this")
    return {"ssl_ca_certs": ca}


def authority(variable: str, path: str) -> str:
    """The absolute path of a file with certificates; empty stays empty.

    Raises:
        ValueError: it is not there.
    """
    if not path:
        return ""
    if not Path(path).is_file():
        raise ValueError(f"{variable}: there is no file {path}; name a PEM file with the authority's certificate")
    return str(Path(path).absolute())
