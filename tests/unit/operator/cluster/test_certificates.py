"""Tests of the webhook's certificate: trusted by its authority, renewed in time, and stored in a Secret in memory."""

from __future__ import annotations

import copy
import datetime as dt
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from tidemill_operator.actuators.kubernetes.api import Api, Conflict
from tidemill_operator.cluster.admission.certificates import CertificateKeeper, Certificates, renew_if_needed
from tidemill_operator.errors import Reason

HOSTS = ("tidemill-webhook.system.svc", "tidemill-webhook.system.svc.cluster.local")
BEGIN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def after(days: float) -> dt.datetime:
    return BEGIN + dt.timedelta(days=days)


def trusted(certificates: Certificates, by: Certificates, *, host: str = HOSTS[0], at: dt.datetime = BEGIN) -> bool:
    """Return whether a client with the bundle of `by` accepts the server's certificate for a host."""
    store = Store(x509.load_pem_x509_certificates(by.bundle.encode()))
    verifier = PolicyBuilder().store(store).time(at).build_server_verifier(x509.DNSName(host))
    try:
        verifier.verify(x509.load_pem_x509_certificate(certificates.server.certificate.encode()), [])
    except VerificationError:
        return False
    return True


def test_a_new_certificate_is_trusted_under_all_its_names_and_no_other() -> None:
    certificates = renew_if_needed(None, hosts=HOSTS, now=BEGIN)
    assert [trusted(certificates, certificates, host=host) for host in (*HOSTS, "other.system.svc")] == [
        True,
        True,
        False,
    ]
    assert not trusted(certificates, renew_if_needed(None, hosts=HOSTS, now=BEGIN)), "another authority is not trusted"


@pytest.mark.parametrize(
    ("reason", "days", "expected"),
    [
        ("no renewal is due", 200, ("same", "same")),
        ("a third of the server certificate's lifetime is left", 250, ("new", "same")),
        ("the server certificate has expired", 1_000, ("new", "same")),
        ("the authority is due, so both are new", 3_000, ("new", "new")),
        ("the clock is before the beginning of the validity", -1, ("new", "new")),
    ],
)
def test_certificates_are_renewed_when_they_are_due_and_not_before(
    reason: str, days: float, expected: tuple[str, str]
) -> None:
    certificates = renew_if_needed(None, hosts=HOSTS, now=BEGIN)
    later = renew_if_needed(certificates, hosts=HOSTS, now=after(days))
    renewals = tuple(
        "same" if a == b else "new"
        for a, b in ((certificates.server, later.server), (certificates.authority, later.authority))
    )
    assert renewals == expected, reason


def test_other_host_names_need_another_server_certificate() -> None:
    certificates = renew_if_needed(None, hosts=HOSTS, now=BEGIN)
    later = renew_if_needed(certificates, hosts=HOSTS[:1], now=BEGIN)
    assert (later.server == certificates.server, later.authority == certificates.authority) == (False, True)


def test_the_new_bundle_trusts_the_old_certificate() -> None:
    certificates = renew_if_needed(None, hosts=HOSTS, now=BEGIN)
    later = renew_if_needed(certificates, hosts=HOSTS, now=after(3_000))
    assert trusted(later, later, at=after(3_000))
    assert trusted(certificates, later)


def test_private_keys_are_not_in_the_text_of_the_object() -> None:
    assert "PRIVATE" not in repr(renew_if_needed(None, hosts=HOSTS, now=BEGIN))


class Secrets:
    """A Secret as the API server keeps it. `faster` is written by another replica before the next creation."""

    def __init__(self) -> None:
        self.secret: dict[str, Any] | None = None
        self.writes = 0
        self.faster: dict[str, Any] | None = None

    def get(self, *_: object) -> dict[str, Any] | None:
        return copy.deepcopy(self.secret)

    def create(self, body: dict[str, Any]) -> None:
        if self.faster is not None:
            self.secret, self.faster = self.faster, None
            raise Conflict(Reason.WAITING, "exists")
        self.writes += 1
        self.secret = copy.deepcopy(body)
        self.secret["metadata"]["resourceVersion"] = "1"

    def merge(self, _kind: object, _namespace: str, _name: str, patch: dict[str, Any]) -> None:
        assert self.secret is not None
        assert patch["metadata"]["resourceVersion"] == self.secret["metadata"]["resourceVersion"]
        self.writes += 1
        self.secret["data"] = patch["data"]


def keeper(secrets: Secrets, now: dt.datetime = BEGIN) -> CertificateKeeper:
    return CertificateKeeper(cast(Api, secrets), namespace="system", name="w", hosts=HOSTS, now=lambda: now)


def test_the_secret_is_created_once_and_read_by_all_replicas() -> None:
    secrets = Secrets()
    first, second = keeper(secrets).ensure(), keeper(secrets).ensure()
    assert (first, secrets.writes) == (second, 1)


def test_a_replica_that_loses_the_race_uses_the_winners_certificate() -> None:
    winners, secrets = Secrets(), Secrets()
    certificates = keeper(winners).ensure()
    secrets.faster = winners.secret
    assert keeper(secrets).ensure() == certificates
    assert secrets.writes == 0


@pytest.mark.parametrize("damage", ["tls.key", "ca.crt", "tls.crt", "ca.key"])
def test_a_damaged_secret_is_replaced(damage: str) -> None:
    secrets = Secrets()
    keeper(secrets).ensure()
    assert secrets.secret is not None
    secrets.secret["data"][damage] = "bm90aGluZw=="
    certificates = keeper(secrets).ensure()
    assert trusted(certificates, certificates)
    assert secrets.writes == 2


def test_a_certificate_of_another_authority_is_replaced() -> None:
    """Every client would refuse the certificate of one authority with the bundle of another."""
    secrets, others = Secrets(), Secrets()
    keeper(secrets).ensure()
    keeper(others).ensure()
    assert secrets.secret is not None
    assert others.secret is not None
    for file in ("tls.crt", "tls.key"):
        secrets.secret["data"][file] = others.secret["data"][file]
    certificates = keeper(secrets).ensure()
    assert trusted(certificates, certificates)
