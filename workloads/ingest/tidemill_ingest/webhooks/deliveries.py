"""Reads the id of a webhook delivery, and recognises requests without events, such as pings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from tidemill_chassis.web.problems import Problem
from tidemill_contract.resource.inputs.webhooks import WebhookSpec
from tidemill_ingest.webhooks.signatures import RequestSignature

KEY_PREFIX = "webhooks/"
"""The prefix of the Idempotency-Keys of webhook deliveries. Other requests cannot use keys with this prefix."""
_MAX_CHARACTERS = 200
_FORM = "application/x-www-form-urlencoded"


class _WithId(msgspec.Struct):
    id: str = ""


_id_decoder = msgspec.json.Decoder(_WithId)


def is_ping(webhook: WebhookSpec, headers: Mapping[str, str]) -> bool:
    """Return whether the request is GitHub's test request (`ping`)."""
    return webhook.signature == "github" and headers.get("x-github-event") == "ping"


def refuse_form(webhook: WebhookSpec, headers: Mapping[str, str]) -> None:
    """Refuse a body in the form encoding, which GitHub uses by default.

    Raises:
        Problem: the body is a form (415). The detail tells which setting of the sending service to change.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _FORM:
        return
    if webhook.signature == "github":
        remedy = "in the settings of the webhook at GitHub, select the content type application/json"
    else:
        remedy = "let the service send application/json"
    raise Problem(415, "unsupported_media_type", f"Content-Type {_FORM}; {remedy}")


def delivery_key(
    webhook: WebhookSpec, signature: RequestSignature, headers: Mapping[str, str], body: bytes
) -> str | None:
    """Return the Idempotency-Key of a delivery, or None if the delivery has no id."""
    identifier = signature.identifier
    if webhook.signature == "github":
        identifier = headers.get("x-github-delivery", "").strip()
    elif webhook.signature == "stripe":
        try:
            identifier = _id_decoder.decode(body).id
        except msgspec.MsgspecError:
            identifier = ""
    if not identifier:
        return None
    if len(identifier) > _MAX_CHARACTERS:
        identifier = hashlib.sha256(identifier.encode()).hexdigest()
    return f"{KEY_PREFIX}{webhook.name}/{identifier}"
