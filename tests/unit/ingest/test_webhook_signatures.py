"""Tests of webhook signatures: the examples of the services' documentation, and all signatures that are refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from tidemill_chassis.web.problems import Problem
from tidemill_contract.resource.inputs.webhooks import WebhookSpec
from tidemill_contract.runtime import WorkloadSettings
from tidemill_ingest.webhooks.deliveries import delivery_key, is_ping, refuse_form
from tidemill_ingest.webhooks.secrets import Secrets
from tidemill_ingest.webhooks.signatures import read_signature, verify

NOW = 1_700_000_000.0
SECRET = b"It's a Secret to Everybody"
BODY = b"Hello, World!"
# From GitHub's documentation, "Validating webhook deliveries".
GITHUB = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"


def hook(signature: str, **members: Any) -> WebhookSpec:
    secret = {"name": "s", "key": "k"}
    return WebhookSpec.model_validate({"name": "w", "signature": signature, "secretRef": secret, **members})


def mac(text: bytes, algorithm: str = "sha256", secret: bytes = SECRET) -> bytes:
    return hmac.new(secret, text, algorithm).digest()


def stripe(body: bytes = BODY, at: float = NOW, secret: bytes = SECRET) -> str:
    return f"t={at:.0f},v1={mac(f'{at:.0f}.'.encode() + body, secret=secret).hex()}"


def check(
    webhook: WebhookSpec, headers: dict[str, str], body: bytes = BODY, secrets: tuple[bytes, ...] = (SECRET,)
) -> None:
    sent = Headers(headers)
    verify(webhook, read_signature(webhook, sent), secrets, body, NOW)


def refusal(webhook: WebhookSpec, headers: dict[str, str], body: bytes = BODY, *secrets: bytes) -> Problem:
    with pytest.raises(Problem) as caught:
        check(webhook, headers, body, secrets or (SECRET,))
    problem = caught.value
    assert problem.status == 401
    assert problem.headers["www-authenticate"].startswith("Signature header=")
    for right in (mac(body), mac(f"{NOW:.0f}.".encode() + body)):
        assert right.hex() not in problem.detail
    assert "Everybody" not in problem.detail
    return problem


def test_the_example_of_githubs_documentation_is_accepted() -> None:
    check(hook("github"), {"x-hub-signature-256": GITHUB})


def test_a_signature_with_any_of_several_secrets_is_accepted() -> None:
    check(hook("github"), {"x-hub-signature-256": GITHUB}, secrets=(b"new", SECRET))
    assert refusal(hook("github"), {"x-hub-signature-256": GITHUB}, BODY, b"new", b"newer").code == "wrong_signature"


@pytest.mark.parametrize(
    ("headers", "code", "detail"),
    [
        ({}, "missing_signature", "the header X-Hub-Signature-256 is missing: set a secret"),
        ({"x-hub-signature-256": "sha256="}, "malformed_signature", "has 0 bytes, but sha256 has 32"),
        ({"x-hub-signature-256": "sha256=zz"}, "malformed_signature", "is not hex"),
        ({"x-hub-signature-256": "sha1=" + "0" * 40}, "malformed_signature", "is not hex"),
        ({"x-hub-signature-256": GITHUB[:-2]}, "malformed_signature", "has 31 bytes"),
        ({"x-hub-signature-256": GITHUB[:-1] + "8"}, "wrong_signature", "does not belong to this body"),
    ],
)
def test_a_missing_malformed_or_wrong_github_signature_is_refused(
    headers: dict[str, str], code: str, detail: str
) -> None:
    problem = refusal(hook("github"), headers)
    assert (problem.code, detail in problem.detail) == (code, True), problem.detail


def test_a_signature_of_another_body_is_refused() -> None:
    assert refusal(hook("github"), {"x-hub-signature-256": GITHUB}, BODY + b"\n").code == "wrong_signature"


def test_stripe_signs_the_time_with_the_body() -> None:
    for at in (NOW, NOW - 299, NOW + 299):
        check(hook("stripe"), {"stripe-signature": stripe(at=at)})
    both = f"{stripe(secret=b'old')},v0=12,{stripe().partition(',')[2]}"
    check(hook("stripe"), {"stripe-signature": both})
    for at, message in ((NOW - 301, "was signed 301 s ago"), (NOW + 302, "has a time 302 s ahead")):
        problem = refusal(hook("stripe"), {"stripe-signature": stripe(at=at)})
        assert (problem.code, message in problem.detail) == ("stale_signature", True), problem.detail
    late = stripe(at=NOW - 301).replace(f"{NOW - 301:.0f}", f"{NOW:.0f}")
    assert refusal(hook("stripe"), {"stripe-signature": late}).code == "wrong_signature", "the time is signed"
    check(hook("stripe", tolerance="10m"), {"stripe-signature": stripe(at=NOW - 599)})


@pytest.mark.parametrize(
    "text", ["", "t=1", "v1=00", "t=1,t=2,v1=00", "t=x,v1=" + "0" * 64, "t=1,v1=zz", ",,,=", "t=1,v0=1"]
)
def test_a_missing_or_malformed_stripe_signature_is_refused(text: str) -> None:
    code = "malformed_signature" if text else "missing_signature"
    assert refusal(hook("stripe"), {"stripe-signature": text}).code == code


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512"])
@pytest.mark.parametrize("encoding", ["hex", "base64"])
def test_hmac_signatures_are_verified_in_every_algorithm_and_encoding(algorithm: str, encoding: str) -> None:
    webhook = hook("hmac", header="X-Sign", algorithm=algorithm, encoding=encoding, prefix="v1=")
    digest = mac(BODY, algorithm)
    text = digest.hex() if encoding == "hex" else base64.b64encode(digest).decode()
    check(webhook, {"x-sign": f"v1={text}"})
    check(webhook, {"x-sign": f"v1=AAAA v1={text}".replace("AAAA", text[::1])})
    check(webhook, {"x-sign": f"v1=00 v1={text}"})
    assert refusal(webhook, {"x-sign": text}).code == "malformed_signature"
    assert refusal(webhook, {"x-sign": f"v1={text}"}, b"other").code == "wrong_signature"


def test_settings_of_hmac_can_describe_slack_and_standard_webhooks() -> None:
    slack = hook(
        "hmac", header="X-Slack-Signature", prefix="v0=", timestampHeader="X-Slack-Request-Timestamp",
        signed="v0:{timestamp}:{body}",
    )  # fmt: skip
    headers = {"x-slack-signature": f"v0={mac(b'v0:1700000000:' + BODY).hex()}"}
    check(slack, {**headers, "x-slack-request-timestamp": "1700000000"})
    assert refusal(slack, headers).detail.startswith("the header X-Slack-Request-Timestamp is missing")
    assert refusal(slack, {**headers, "x-slack-request-timestamp": "now"}).code == "malformed_signature"

    standard = hook(
        "hmac", header="webhook-signature", prefix="v1,", encoding="base64", timestampHeader="webhook-timestamp",
        idHeader="webhook-id", signed="{id}.{timestamp}.{body}",
    )  # fmt: skip
    sent = {
        "webhook-id": "msg_1",
        "webhook-timestamp": "1700000000000",
        "webhook-signature": "v1," + base64.b64encode(mac(b"msg_1.1700000000000." + BODY)).decode(),
    }
    check(standard, sent)
    assert delivery_key(standard, read_signature(standard, Headers(sent)), Headers(sent), BODY) == "webhooks/w/msg_1"
    assert refusal(standard, {**sent, "webhook-id": "msg_2"}).code == "wrong_signature"
    del sent["webhook-id"]
    assert refusal(standard, sent).code == "missing_signature"


def test_a_signed_time_that_is_not_only_digits_is_refused() -> None:
    """Otherwise digits could move from the body to the time without a change of the signed text."""
    webhook = hook("hmac", header="X-Sign", timestampHeader="X-Time")
    sign = {"x-sign": mac(b"1700000000.5." + BODY).hex()}
    check(webhook, {**sign, "x-time": "1700000000"}, b"5." + BODY)
    assert refusal(webhook, {**sign, "x-time": "1700000000.5"}).code == "malformed_signature"


def test_a_delivery_has_the_idempotency_key_of_its_sender_or_none() -> None:
    signature = read_signature(hook("github"), Headers({"x-hub-signature-256": GITHUB}))
    for headers, body, expected in (
        ({"x-github-delivery": "72d3162e"}, BODY, "webhooks/w/72d3162e"),
        ({"x-github-delivery": "x" * 300}, BODY, f"webhooks/w/{hashlib.sha256(b'x' * 300).hexdigest()}"),
        ({}, BODY, None),
    ):
        assert delivery_key(hook("github"), signature, Headers(headers), body) == expected
    for body, expected in (
        (b'{"id": "evt_1"}', "webhooks/w/evt_1"),
        (b'{"id": 5}', None),
        (b"[]", None),
        (b"{}", None),
    ):
        assert delivery_key(hook("stripe"), signature, Headers({}), body) == expected
    assert is_ping(hook("github"), Headers({"X-GitHub-Event": "ping"}))
    assert not is_ping(hook("github"), Headers({"X-GitHub-Event": "push"}))
    assert not is_ping(hook("stripe"), Headers({"X-GitHub-Event": "ping"}))


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("github", "in the settings of the webhook at GitHub, select the content type application/json"),
        ("stripe", "let the service send application/json"),
    ],
)
def test_a_form_is_refused_with_the_setting_to_change_at_the_service(kind: str, remedy: str) -> None:
    refuse_form(hook(kind), Headers({"Content-Type": "application/json"}))
    with pytest.raises(Problem) as refused:
        refuse_form(hook(kind), Headers({"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}))
    assert (refused.value.status, refused.value.code) == (415, "unsupported_media_type")
    assert refused.value.detail == f"Content-Type application/x-www-form-urlencoded; {remedy}"


def test_each_line_of_a_file_is_a_secret_and_changes_are_read_after_a_second(tmp_path: Path) -> None:
    now = [0.0]
    secrets = Secrets(WorkloadSettings(secrets_dir=tmp_path), clock=lambda: now[0])
    webhook = hook("github")
    assert secrets.for_webhook("p", webhook) == ()
    (tmp_path / "p").mkdir()
    file = tmp_path / "p" / "webhook-w"
    file.write_bytes(b"one\r\n\n  two \n")
    assert secrets.for_webhook("p", webhook) == (), "the file is not read again within a second"
    now[0] = 1.0
    assert secrets.for_webhook("p", webhook) == (b"one", b"two")
    file.write_bytes(b"\n" * 20 + b"x\n" * 20)
    now[0] = 2.0
    assert secrets.for_webhook("p", webhook) == (b"x",) * 10
    (tmp_path / "p.webhook-w").write_bytes(b"flat")
    now[0] = 3.0
    assert secrets.for_webhook("p", webhook) == (b"flat",)
    (tmp_path / "p.webhook-w").unlink()
    file.unlink()
    now[0] = 4.0
    assert secrets.for_webhook("p", webhook) == ()
