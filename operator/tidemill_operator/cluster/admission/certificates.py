"""Stores the webhook's certificate and the certificate authority in a Secret."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tidemill_operator.actuators.kubernetes.api import SECRET, Api, Conflict, Document
from tidemill_operator.actuators.kubernetes.secrets import decoded
from tidemill_operator.errors import TidemillError
from tidemill_operator.plan.render import object_metadata, objects

log = logging.getLogger(__name__)
_AUTHORITY_DAYS, _SERVER_DAYS = 3650, 365
_SKEW = dt.timedelta(hours=1)
_ATTEMPTS = 3
CA, CA_KEY, CERTIFICATE, KEY = "ca.crt", "ca.key", "tls.crt", "tls.key"


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its key, as PEM."""

    certificate: str
    key: str = field(repr=False)


@dataclass(frozen=True)
class Certificates:
    """The certificates and keys in the webhook's Secret.

    Attributes:
        bundle: the certificates of all trusted authorities that have not expired, newest first.
        authority: certificate and key of the authority that signs the server's certificate.
        server: certificate and key of the webhook's server.
    """

    bundle: str
    authority: KeyPair
    server: KeyPair

    def files(self) -> dict[str, str]:
        """Return the certificates as files of a Secret."""
        return {
            CA: self.bundle,
            CA_KEY: self.authority.key,
            CERTIFICATE: self.server.certificate,
            KEY: self.server.key,
        }


class CertificateKeeper:
    """Keeps the webhook's Secret up to date."""

    def __init__(
        self,
        api: Api,
        *,
        namespace: str,
        name: str,
        hosts: Sequence[str],
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._api, self._namespace, self._name = api, namespace, name
        self._hosts, self._now = tuple(hosts), now

    def ensure(self) -> Certificates:
        """Return the certificates, created or renewed if necessary.

        Raises:
            Conflict: another replica wrote first at every attempt.
            TidemillError: the API does not answer, or refuses the request.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._ensure()
            except Conflict:
                continue
        return self._ensure()

    def _ensure(self) -> Certificates:
        live = self._api.get(SECRET, self._namespace, self._name)
        current = _read(live) if live else None
        certificates = renew_if_needed(current, hosts=self._hosts, now=self._now())
        if certificates == current and current is not None:
            return current
        self._write(live, certificates)
        log.info("the webhook's certificate was %s", "renewed" if live else "created")
        return certificates

    def _write(self, live: Document | None, certificates: Certificates) -> None:
        if live is None:
            labels = {**object_metadata.MANAGED_LABELS, object_metadata.COMPONENT: "webhook"}
            metadata = {"name": self._name, "namespace": self._namespace, "labels": labels}
            self._api.create(objects.secret(metadata, certificates.files()))
            return
        patch = {
            "metadata": {"resourceVersion": live["metadata"]["resourceVersion"]},
            "data": objects.secret({}, certificates.files())["data"],
        }
        self._api.merge(SECRET, self._namespace, self._name, patch)


def renew_if_needed(current: Certificates | None, *, hosts: Sequence[str], now: dt.datetime) -> Certificates:
    """Return `current`, or renewed certificates if a certificate expires soon or the hosts have changed."""
    if current is None or _needs_renewal(current.authority, now):
        authority = new_authority(now)
        bundle = authority.certificate + _unexpired(current.bundle if current else "", now)
        return Certificates(bundle, authority, issue(authority, hosts, now))
    if _needs_renewal(current.server, now) or _hosts(current.server) != set(hosts):
        return Certificates(current.bundle, current.authority, issue(current.authority, hosts, now))
    return current


def new_authority(now: dt.datetime) -> KeyPair:
    """Create a new certificate authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tidemill-webhook-ca")])
    builder = (
        _builder(name, name, key, now, days=_AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _key_pair(builder.sign(key, hashes.SHA256()), key)


def issue(authority: KeyPair, hosts: Sequence[str], now: dt.datetime) -> KeyPair:
    """Create a certificate for the server."""
    parent = x509.load_pem_x509_certificate(authority.certificate.encode())
    parent_key = serialization.load_pem_private_key(authority.key.encode(), None)
    if not isinstance(parent_key, ec.EllipticCurvePrivateKey):
        raise ValueError("the authority's key is not an elliptic curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
    builder = (
        _builder(name, parent.subject, key, now, days=_SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(parent_key.public_key()), critical=False)
    )
    return _key_pair(builder.sign(parent_key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: dt.datetime, *, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return KeyPair(certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode())


def _read(live: Document) -> Certificates | None:
    try:
        files = decoded(live)
        authorities = x509.load_pem_x509_certificates(files[CA].encode())
        first = authorities[0].public_bytes(serialization.Encoding.PEM).decode()
        certificates = Certificates(files[CA], KeyPair(first, files[CA_KEY]), KeyPair(files[CERTIFICATE], files[KEY]))
        for pair in (certificates.authority, certificates.server):
            certificate = x509.load_pem_x509_certificate(pair.certificate.encode())
            private = serialization.load_pem_private_key(pair.key.encode(), None)
            if private.public_key() != certificate.public_key():
                raise ValueError("a key belongs to another certificate")
        x509.load_pem_x509_certificate(certificates.server.certificate.encode()).verify_directly_issued_by(
            authorities[0]
        )
    except (KeyError, IndexError, ValueError, TypeError, TidemillError):
        log.warning("the webhook's Secret has invalid content; it is replaced")
        return None
    except Exception as error:  # cryptography also raises InvalidSignature, which is no ValueError
        log.warning("the webhook's Secret has invalid content (%s); it is replaced", type(error).__name__)
        return None
    return certificates


def _needs_renewal(pair: KeyPair, now: dt.datetime) -> bool:
    certificate = x509.load_pem_x509_certificate(pair.certificate.encode())
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now >= end - (end - begin) / 3 or now < begin


def _hosts(pair: KeyPair) -> set[str]:
    certificate = x509.load_pem_x509_certificate(pair.certificate.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(names.get_values_for_type(x509.DNSName))


def _unexpired(bundle: str, now: dt.datetime) -> str:
    """Return the authorities of a bundle that have not expired."""
    authorities = x509.load_pem_x509_certificates(bundle.encode()) if bundle else []
    valid = [authority for authority in authorities if authority.not_valid_after_utc > now]
    return "".join(authority.public_bytes(serialization.Encoding.PEM).decode() for authority in valid)
