"""Handles requests to `POST /v1/pipelines/{pipeline}/webhooks/{webhook}`."""

from __future__ import annotations

import asyncio
import time

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tidemill_chassis.web.problems import Problem, unavailable
from tidemill_contract.resource.inputs.webhooks import WebhookSpec
from tidemill_ingest import metrics
from tidemill_ingest.body_reader import decompress_body, receive_body
from tidemill_ingest.events import EventsHandler, IdempotencyKey, Options
from tidemill_ingest.idempotency.requests import fingerprint
from tidemill_ingest.pipelines import Pipeline, Pipelines
from tidemill_ingest.webhooks.deliveries import delivery_key, is_ping, refuse_form
from tidemill_ingest.webhooks.secrets import Secrets
from tidemill_ingest.webhooks.signatures import read_signature, verify

_NO_SECRET_SECONDS = 30.0
_INLINE_BYTES = 256 * 1024
"""Bodies of at least this many bytes are hashed in a thread."""
_OPTIONS = Options(is_webhook=True)
_PING_ANSWER = b'{"accepted":0,"quarantined":0,"retry":0,"results":[]}'


class WebhookHandler:
    """Verifies the signatures of webhook requests, and accepts their events."""

    def __init__(self, pipelines: Pipelines, events: EventsHandler, secrets: Secrets) -> None:
        self._pipelines, self._events, self._secrets = pipelines, events, secrets

    async def receive(self, request: Request) -> Response:
        """Handle a request.

        Raises:
            Problem: nothing was sent.
        """
        pipeline, webhook = self._pipelines.webhook(request.path_params["pipeline"], request.path_params["webhook"])
        try:
            return await self._receive(request, pipeline, webhook)
        except ClientDisconnect:
            return Response(status_code=400)

    async def _receive(self, request: Request, pipeline: Pipeline, webhook: WebhookSpec) -> Response:
        secrets = self._secrets.for_webhook(pipeline.name, webhook)
        if not secrets:
            self._count(pipeline, webhook, "no_secret")
            secret_ref = webhook.secret_ref
            detail = f"the webhook has no secret yet: add the key {secret_ref.key} to the Secret {secret_ref.name}"
            raise unavailable("no_secret", detail, _NO_SECRET_SECONDS)
        try:
            signature = read_signature(webhook, request.headers)
            with self._events.reserve_memory() as reservation:
                raw = await receive_body(request, reservation)
                arguments = (webhook, signature, secrets, raw, time.time())
                if len(raw) > _INLINE_BYTES:
                    await asyncio.to_thread(verify, *arguments)
                else:
                    verify(*arguments)
                # Refuse the form encoding even for a ping. GitHub sends a ping for each new webhook, and shows the
                # error to the user.
                refuse_form(webhook, request.headers)
                if is_ping(webhook, request.headers):
                    self._count(pipeline, webhook, "ping")
                    return Response(_PING_ANSWER, 200, {"cache-control": "no-store"}, media_type="application/json")
                self._count(pipeline, webhook, "verified")
                body = await decompress_body(request, raw, reservation)
                events_request = self._events.read(request, pipeline, _OPTIONS, body)
                key = delivery_key(webhook, signature, request.headers, body)
                # Compare deliveries by their ids only, because the body of a repeated delivery may be different.
                idempotency_key = None
                if key is not None:
                    content = fingerprint(b"", webhook.name, str(len(events_request.events.values)))
                    idempotency_key = IdempotencyKey(key, content)
                return (await self._events.accept(events_request, idempotency_key, request.state.deadline)).response()
        except Problem as problem:
            if problem.status == 401:
                self._count(pipeline, webhook, "refused")
            raise

    @staticmethod
    def _count(pipeline: Pipeline, webhook: WebhookSpec, outcome: str) -> None:
        metrics.WEBHOOK_REQUESTS.labels(pipeline.name, webhook.name, outcome).inc()
