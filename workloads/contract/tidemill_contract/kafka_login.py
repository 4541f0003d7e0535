"""Derive Kafka client settings from the keys of a Secret."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tidemill_contract.files import read_text

PROTOCOL, MECHANISM, USERNAME, PASSWORD = "security.protocol", "sasl.mechanism", "sasl.username", "sasl.password"
CA, CERTIFICATE, KEY = "ca.crt", "tls.crt", "tls.key"
KEYS = (PROTOCOL, MECHANISM, USERNAME, PASSWORD, CA, CERTIFICATE, KEY)
"""The keys of the Secret. All keys are optional."""
_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_PEM = {CA: "ssl.ca.pem", CERTIFICATE: "ssl.certificate.pem", KEY: "ssl.key.pem"}
_PEM_LABELS = {CA: "CERTIFICATE", CERTIFICATE: "CERTIFICATE", KEY: "PRIVATE KEY"}


class LoginError(ValueError):
    """The error for a Secret with invalid keys. The message contains the remedy, but no secret values."""


def read_keys(folder: Path) -> dict[str, str]:
    """Read the keys of a Secret from a folder that contains a file for each key.

    Keys without a file are left out.

    Raises:
        LoginError: a file cannot be read.
    """
    keys = {}
    for key in KEYS:
        try:
            keys[key] = read_text(folder / key)
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise LoginError(f"{key} cannot be read ({type(error).__name__}); correct the Secret") from None
    return keys


def client_settings(keys: Mapping[str, str]) -> dict[str, str]:
    """Return librdkafka's settings for the keys of a Secret.

    Other keys are ignored, because some settings of librdkafka read files, load libraries or run commands.

    If `security.protocol` is missing, the other keys decide the protocol: SASL_SSL for `sasl.mechanism` or
    `sasl.username`, SSL for a certificate, and otherwise PLAINTEXT.

    Raises:
        LoginError: a key is missing or has a wrong value.
    """
    given_keys = {key: keys[key].strip() for key in KEYS if keys.get(key, "").strip()}
    protocol = given_keys.get(PROTOCOL, _default_protocol(given_keys)).upper()
    if protocol not in _PROTOCOLS:
        raise LoginError(f"{PROTOCOL}: {protocol[:40]} is none of {', '.join(_PROTOCOLS)}")
    settings = {PROTOCOL: protocol}
    if protocol.startswith("SASL_"):
        settings |= _login(given_keys)
    elif MECHANISM in given_keys or USERNAME in given_keys:
        raise LoginError(f"{PROTOCOL}: {protocol} sends no login; write SASL_{protocol.replace('PLAINTEXT', 'SSL')}")
    if protocol.endswith("SSL"):
        settings |= _certificates(given_keys)
    return settings


def _default_protocol(keys: Mapping[str, str]) -> str:
    if MECHANISM in keys or USERNAME in keys:
        return "SASL_SSL"
    return "SSL" if CA in keys or CERTIFICATE in keys else "PLAINTEXT"


def _login(keys: Mapping[str, str]) -> dict[str, str]:
    for key in (MECHANISM, USERNAME, PASSWORD):
        if key not in keys:
            raise LoginError(f"{key} is missing; add the key to the Secret")
    mechanism = keys[MECHANISM].upper()
    if mechanism not in _MECHANISMS:
        raise LoginError(f"{MECHANISM}: {mechanism[:40]} is none of {', '.join(_MECHANISMS)}")
    return {MECHANISM: mechanism, USERNAME: keys[USERNAME], PASSWORD: keys[PASSWORD]}


def _certificates(keys: Mapping[str, str]) -> dict[str, str]:
    for key, other in ((CERTIFICATE, KEY), (KEY, CERTIFICATE)):
        if key in keys and other not in keys:
            raise LoginError(f"{key} needs {other}; add the key to the Secret")
    for key, label in _PEM_LABELS.items():
        if key in keys and f"{label}-----" not in keys[key]:
            raise LoginError(f"{key} is no PEM text; write the text from -----BEGIN to the end")
    return {setting: keys[key] + "\n" for key, setting in _PEM.items() if key in keys}
