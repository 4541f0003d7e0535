"""Tests of Kafka's client settings from the keys of a Secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill_contract.kafka_login import LoginError, client_settings, read_keys

PEM, KEY = "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----", "-----BEGIN PRIVATE KEY-----\nabc\n"
LOGIN = {"sasl.mechanism": "scram-sha-512", "sasl.username": "me\n", "sasl.password": " hidden\n"}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {"security.protocol": "PLAINTEXT"}),
        ({"ca.crt": PEM}, {"security.protocol": "SSL", "ssl.ca.pem": f"{PEM}\n"}),
        (
            {**LOGIN, "ca.crt": PEM, "other": "ignored"},
            {
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": "SCRAM-SHA-512",
                "sasl.username": "me",
                "sasl.password": "hidden",
                "ssl.ca.pem": f"{PEM}\n",
            },
        ),
        (
            {"security.protocol": "sasl_plaintext\n", **LOGIN, "ca.crt": "not used"},
            {
                "security.protocol": "SASL_PLAINTEXT",
                "sasl.mechanism": "SCRAM-SHA-512",
                "sasl.username": "me",
                "sasl.password": "hidden",
            },
        ),
        (
            {"tls.crt": PEM, "tls.key": KEY},
            {"security.protocol": "SSL", "ssl.certificate.pem": f"{PEM}\n", "ssl.key.pem": KEY},
        ),
    ],
)
def test_keys_of_a_secret_become_client_settings(keys: dict[str, str], expected: dict[str, str]) -> None:
    assert client_settings(keys) == expected


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"security.protocol": "TLS"}, "security.protocol: TLS is none of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"),
        ({"security.protocol": "SSL", **LOGIN}, "security.protocol: SSL sends no login; write SASL_SSL"),
        ({"security.protocol": "PLAINTEXT", **LOGIN}, "security.protocol: PLAINTEXT sends no login; write SASL_SSL"),
        ({"sasl.username": "me"}, "sasl.mechanism is missing; add the key to the Secret"),
        ({**LOGIN, "sasl.password": ""}, "sasl.password is missing; add the key to the Secret"),
        ({**LOGIN, "sasl.mechanism": "GSSAPI"}, "sasl.mechanism: GSSAPI is none of PLAIN, SCRAM-SHA-256, SCRAM-SHA"),
        ({"tls.crt": PEM}, "tls.crt needs tls.key; add the key to the Secret"),
        ({"ca.crt": "abc"}, "ca.crt is no PEM text; write the text from -----BEGIN to the end"),
    ],
)
def test_an_invalid_secret_is_refused_with_its_key_and_without_its_password(keys: dict[str, str], text: str) -> None:
    with pytest.raises(LoginError) as refused:
        client_settings(keys)
    assert str(refused.value).startswith(text)
    assert "hidden" not in str(refused.value)


def test_known_keys_are_read_from_files_and_others_are_ignored(tmp_path: Path) -> None:
    assert read_keys(tmp_path / "none") == {}
    (tmp_path / "sasl.username").write_text("me")
    (tmp_path / "sasl.kerberos.kinit.cmd").write_text("not read")
    assert read_keys(tmp_path) == {"sasl.username": "me"}
    (tmp_path / "ca.crt").write_bytes(b"\xff")
    with pytest.raises(LoginError, match=r"ca\.crt cannot be read \(UnicodeDecodeError\); correct the Secret"):
        read_keys(tmp_path)
