"""The member `source.webhooks`: services post events to ingest, and sign them with a shared secret."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from tidemill_contract.duration import Duration, parse_ms
from tidemill_contract.resource.faults import ABSENT, Fault
from tidemill_contract.resource.kinds.base import Model
from tidemill_contract.resource.kinds.formats import SecretRef

WebhookName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$", max_length=40)]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$", max_length=100)]
SecretKey = Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]{1,253}$", max_length=253)]
Template = Annotated[str, StringConstraints(min_length=1, max_length=200)]

BODY, TIMESTAMP, IDENTIFIER = "{body}", "{timestamp}", "{id}"
"""The placeholders of `signed`."""
_PLACEHOLDER = re.compile(r"\{[A-Za-z_]+\}")
_ONLY_HMAC = ("header", "algorithm", "encoding", "prefix", "signed", "timestampHeader", "idHeader")
_MAX_TOLERANCE_MS = 24 * 3_600_000


class SecretKeyRef(SecretRef):
    """A key of a Secret in the pipeline's namespace."""

    key: SecretKey = Field(description="The key in the Secret.")


class WebhookSpec(Model):
    """A service that posts signed events."""

    name: WebhookName = Field(description="Name of the webhook, which is the last part of its URL.")
    signature: Literal["github", "stripe", "hmac"] = Field(
        description="Method of signing: github, stripe or hmac. Other members of the webhook configure hmac."
    )
    secret_ref: SecretKeyRef = Field(
        description="Key of a Secret with the shared secrets, one per line. A signature with any of these secrets is"
        " accepted."
    )
    header: HeaderName | None = Field(None, description="Only for hmac: the header with the signature.")
    algorithm: Literal["sha256", "sha512", "sha1"] | None = Field(
        None, description="Only for hmac: the hash function. Default: sha256."
    )
    encoding: Literal["hex", "base64"] | None = Field(
        None, description="Only for hmac: the encoding of the signature. Default: hex."
    )
    prefix: Annotated[str, StringConstraints(min_length=1, max_length=40)] | None = Field(
        None, description="Only for hmac: the text that precedes the signature in the header, such as sha256=."
    )
    signed: Template | None = Field(
        None,
        description="Only for hmac: the signed text, with the placeholders {body}, {timestamp} and {id}. Default:"
        " {body}, or {timestamp}.{body} if timestampHeader is set.",
    )
    timestamp_header: HeaderName | None = Field(
        None, description="Only for hmac: the header with the time of sending, in seconds or milliseconds since 1970."
    )
    tolerance: Duration | None = Field(
        None, description="Maximum age of a request. Only for stripe, or if timestampHeader is set. Default: 5m."
    )
    id_header: HeaderName | None = Field(
        None,
        description="Only for hmac: the header with the id of the delivery. Deliveries with the same id are counted"
        " once.",
    )

    @property
    def secret_file(self) -> str:
        """The name of the file with the webhook's secrets."""
        return f"webhook-{self.name}"

    @property
    def signed_text(self) -> str:
        """The template of the text that `hmac` signs, such as `{timestamp}.{body}`."""
        return self.signed or (f"{TIMESTAMP}.{BODY}" if self.timestamp_header else BODY)

    @property
    def tolerance_seconds(self) -> float:
        """The maximum age of a request, in seconds."""
        return parse_ms(self.tolerance or "5m") / 1000

    def faults(self, path: str) -> Iterator[Fault]:
        """Yield a fault for each broken rule about the webhook's members."""
        if self.signature != "hmac":
            members = self.model_dump(by_alias=True, exclude_none=True)
            for member in _ONLY_HMAC:
                if member in members:
                    message = f"the signature of {self.signature} has no such setting"
                    yield Fault(
                        f"{path}.{member}", members[member], message, f"remove {member}, or set signature: hmac"
                    )
        elif self.header is None:
            message = "hmac needs the name of the header with the signature"
            yield Fault(f"{path}.header", ABSENT, message, "add the name, such as header: X-Signature")
        yield from self._signed_text_faults(path)
        yield from self._tolerance_faults(path)

    def _signed_text_faults(self, path: str) -> Iterator[Fault]:
        if self.signature != "hmac":
            return
        text, where = self.signed_text, f"{path}.signed"
        if text.count(BODY) != 1:
            yield Fault(where, text, "the signed text must contain the body exactly once", f"write {BODY} once")
        for unknown in sorted({*_PLACEHOLDER.findall(text)} - {BODY, TIMESTAMP, IDENTIFIER}):
            yield Fault(where, text, f"{unknown} has no value", f"use {BODY}, {TIMESTAMP} and {IDENTIFIER}")
        for placeholder, member, header in (
            (TIMESTAMP, "timestampHeader", self.timestamp_header),
            (IDENTIFIER, "idHeader", self.id_header),
        ):
            if placeholder in text and header is None:
                message = f"no header is set for {placeholder}"
                yield Fault(where, text, message, f"set {member}, or remove {placeholder}")
        if self.timestamp_header is not None and TIMESTAMP not in text:
            message = "the signature does not cover the time of sending"
            yield Fault(where, text, message, f"add {TIMESTAMP}, or remove timestampHeader")

    def _tolerance_faults(self, path: str) -> Iterator[Fault]:
        if self.tolerance is None:
            return
        where = f"{path}.tolerance"
        if self.signature == "github" or (self.signature == "hmac" and self.timestamp_header is None):
            remedy = "remove tolerance" if self.signature == "github" else "remove tolerance, or set timestampHeader"
            yield Fault(where, self.tolerance, "the requests contain no time of sending", remedy)
        elif not 1_000 <= parse_ms(self.tolerance) <= _MAX_TOLERANCE_MS:
            yield Fault(where, self.tolerance, "is out of bounds", "write 1s to 24h")
