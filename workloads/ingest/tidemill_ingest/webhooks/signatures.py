"""Verifies the signatures of webhook requests.

A signature is an HMAC of a text with the raw body. GitHub, Stripe and others send such signatures. Signatures are
compared in constant time. Error messages never contain the right signature.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tidemill_chassis.web.problems import Problem
from tidemill_contract.resource.inputs.webhooks import BODY, IDENTIFIER, TIMESTAMP, WebhookSpec

GITHUB_HEADER, STRIPE_HEADER = "X-Hub-Signature-256", "Stripe-Signature"
_DIGEST_BYTES = {"sha1": 20, "sha256": 32, "sha512": 64}
_MAX_SIGNATURES = 16
_MAX_DIGITS = 16
_MIN_MILLISECONDS = 100_000_000_000
"""Timestamps from this number on are milliseconds. Smaller timestamps are seconds."""


@dataclass(frozen=True)
class RequestSignature:
    """The signature of a request, read from its headers.

    Attributes:
        signatures: the signatures in the header. A single valid signature is enough.
        timestamp: the time of sending as text, or an empty text if the webhook's signatures have no time.
        identifier: the id of the delivery, or an empty text without an id.
    """

    signatures: tuple[bytes, ...]
    timestamp: str = ""
    identifier: str = ""


def signature_header(webhook: WebhookSpec) -> str:
    """Return the name of the header with the signature."""
    return {"github": GITHUB_HEADER, "stripe": STRIPE_HEADER}.get(webhook.signature) or webhook.header or ""


def read_signature(webhook: WebhookSpec, headers: Mapping[str, str]) -> RequestSignature:
    """Read the signature from the headers of a request.

    Raises:
        Problem: the request has no signature, or a malformed one (401).
    """
    name = signature_header(webhook)
    text = headers.get(name, "").strip()
    if not text:
        raise _refusal(webhook, "missing_signature", f"the header {name} is missing: {_REMEDIES[webhook.signature]}")
    if webhook.signature == "github":
        return RequestSignature((_digest(webhook, text.removeprefix("sha256="), "sha256", "hex"),))
    if webhook.signature == "stripe":
        return _parse_stripe(webhook, text)
    return _parse_hmac(webhook, text, headers)


def verify(
    webhook: WebhookSpec, signature: RequestSignature, secrets: Sequence[bytes], body: bytes, now: float
) -> None:
    """Check the signature of a request, and then its age at `now` (seconds since 1970).

    Raises:
        Problem: the signature matches none of the secrets, or the request is too old (401).
    """
    before, after = _signed_affixes(webhook, signature)
    is_valid = False
    for secret in secrets:
        mac = hmac.new(secret, before, webhook.algorithm or "sha256")
        mac.update(body)
        mac.update(after)
        expected = mac.digest()
        for candidate in signature.signatures:
            is_valid |= hmac.compare_digest(expected, candidate)
    if not is_valid:
        detail = (
            f"the signature in {signature_header(webhook)} does not belong to this body: use the secret of the webhook"
            f" {webhook.name}, and send the body exactly as it was signed"
        )
        raise _refusal(webhook, "wrong_signature", detail)
    if signature.timestamp:
        _check_age(webhook, signature.timestamp, now)


def _signed_affixes(webhook: WebhookSpec, signature: RequestSignature) -> tuple[bytes, bytes]:
    if webhook.signature == "github":
        return b"", b""
    template = f"{TIMESTAMP}.{BODY}" if webhook.signature == "stripe" else webhook.signed_text
    before, after = (
        part.replace(TIMESTAMP, signature.timestamp)
        .replace(IDENTIFIER, signature.identifier)
        .encode("latin-1", "replace")
        for part in template.split(BODY, 1)
    )
    return before, after


def _check_age(webhook: WebhookSpec, timestamp: str, now: float) -> None:
    sent = int(timestamp)
    age = now - (sent / 1000 if sent >= _MIN_MILLISECONDS else sent)
    limit = webhook.tolerance_seconds
    if abs(age) > limit:
        age_text = f"was signed {age:.0f} s ago" if age > 0 else f"has a time {-age:.0f} s ahead"
        detail = f"the request {age_text}, and at most {limit:.0f} s are allowed: sign it again, or correct the clocks"
        raise _refusal(webhook, "stale_signature", detail)


def _parse_stripe(webhook: WebhookSpec, text: str) -> RequestSignature:
    parts = [part.strip().partition("=") for part in text.split(",")]
    times = [value for name, _, value in parts if name == "t"]
    encoded = [value for name, _, value in parts if name == "v1"][:_MAX_SIGNATURES]
    if len(times) != 1 or not encoded:
        raise _malformed(webhook, "does not have the form t=…,v1=…")
    return RequestSignature(_digests(webhook, encoded, "sha256", "hex"), _check_timestamp(webhook, times[0], "t"))


def _parse_hmac(webhook: WebhookSpec, text: str, headers: Mapping[str, str]) -> RequestSignature:
    algorithm, encoding, prefix = webhook.algorithm or "sha256", webhook.encoding or "hex", webhook.prefix or ""
    words = [text] if " " in prefix else text.split()[:_MAX_SIGNATURES]
    encoded = [word[len(prefix) :] for word in words if word.startswith(prefix)]
    if not encoded:
        raise _malformed(webhook, f"does not start with {prefix}")
    signatures = _digests(webhook, encoded, algorithm, encoding)
    timestamp = identifier = ""
    if webhook.timestamp_header is not None:
        timestamp = _check_timestamp(
            webhook, _required_header(webhook, headers, webhook.timestamp_header), webhook.timestamp_header
        )
    if webhook.id_header is not None:
        identifier = headers.get(webhook.id_header, "").strip()
        if not identifier and IDENTIFIER in webhook.signed_text:
            _required_header(webhook, headers, webhook.id_header)
    return RequestSignature(signatures, timestamp, identifier)


def _required_header(webhook: WebhookSpec, headers: Mapping[str, str], name: str) -> str:
    text = headers.get(name, "").strip()
    if not text:
        raise _refusal(webhook, "missing_signature", f"the header {name} is missing; send the request with this header")
    return text


def _check_timestamp(webhook: WebhookSpec, text: str, name: str) -> str:
    if not text.isascii() or not text.isdigit() or len(text) > _MAX_DIGITS:
        detail = f"the time in {name} is not a number: send seconds or milliseconds since 1970"
        raise _refusal(webhook, "malformed_signature", detail)
    return text


def _digests(webhook: WebhookSpec, texts: Sequence[str], algorithm: str, encoding: str) -> tuple[bytes, ...]:
    """Return the well-formed signatures of a request, at least one."""
    digests, problems = [], []
    for text in texts:
        try:
            digests.append(_digest(webhook, text, algorithm, encoding))
        except Problem as problem:
            problems.append(problem)
    if not digests:
        raise problems[0]
    return tuple(digests)


def _digest(webhook: WebhookSpec, text: str, algorithm: str, encoding: str) -> bytes:
    size = _DIGEST_BYTES[algorithm]
    try:
        digest = bytes.fromhex(text) if encoding == "hex" else base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise _malformed(webhook, f"is not {encoding}") from None
    if len(digest) != size:
        raise _malformed(webhook, f"has {len(digest)} bytes, but {algorithm} has {size}")
    return digest


_REMEDIES = {
    "github": "set a secret in the settings of the webhook at GitHub",
    "stripe": "only Stripe can send events to this address",
    "hmac": "sign the request",
}


def _malformed(webhook: WebhookSpec, what: str) -> Problem:
    detail = f"the signature in {signature_header(webhook)} {what}: sign the request as the pipeline's spec says"
    return _refusal(webhook, "malformed_signature", detail)


def _refusal(webhook: WebhookSpec, code: str, detail: str) -> Problem:
    challenge = f'Signature header="{signature_header(webhook)}"'
    return Problem(401, code, detail, headers={"www-authenticate": challenge})
