"""TLS connections to servers: settings for trusted authorities, and remedies for refused certificates."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

AUTHORITIES = {
    "postgres": "TIDEMILL_POSTGRES_CA (chart: postgres.caSecret)",
    "redis": "TIDEMILL_REDIS_CA (chart: redis.caSecret)",
    "kafka": "ssl.ca.pem of the client settings (chart: kafka.existingSecret)",
    "mqtt": "ca.crt in the Secret of source.mqtt.secretRef",
    "source_kafka": "ca.crt of the Secret that spec.source.kafka.secretRef names",
}
_WRONG_NAME = re.compile(r"does not match host ?name|(hostname|ip address) mismatch|not valid for", re.IGNORECASE)
_UNKNOWN_AUTHORITY = re.compile(r"certificate[ _]verify[ _]failed|unknown ca\b", re.IGNORECASE)


def certificate_remedy(server: str, error: str) -> str:
    """Return the remedy for an error about a server's certificate, or an empty text for other errors."""
    if server not in AUTHORITIES:
        return ""
    if _WRONG_NAME.search(error):
        return "connect by a host name that is in the server's certificate"
    if _UNKNOWN_AUTHORITY.search(error):
        return f"set the certificate of the authority that signed the server's certificate: {AUTHORITIES[server]}"
    return ""


def redis_options(url: str, ca: str) -> dict[str, Any]:
    """Return the TLS options of a Redis client that are not in the URL.

    `ca` is the PEM file of the trusted authorities, or an empty text for the system's authorities.

    Raises:
        ValueError: a PEM file is given, but the URL does not use TLS.
    """
    if not ca or not url:
        return {}
    if urlsplit(url).scheme != "rediss":
        raise ValueError(
            "TIDEMILL_REDIS_CA: TIDEMILL_REDIS_URL does not use TLS; begin the URL with rediss://, or unset"
            " TIDEMILL_REDIS_CA"
        )
    return {"ssl_ca_certs": ca}


def ca_path(variable: str, path: str) -> str:
    """Return the absolute path of a PEM file, or an empty text. If the file does not exist, raise ValueError."""
    if not path:
        return ""
    if not Path(path).is_file():
        raise ValueError(f"{variable}: there is no file {path}; name a PEM file with the authority's certificate")
    return str(Path(path).absolute())
