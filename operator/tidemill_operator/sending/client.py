"""Sends batches over HTTP, and retries while ingest is busy or does not answer."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import tenacity

from tidemill_operator.sending.batches import Batch

RETRY_TIMEOUT_SECONDS = 300.0
_REQUEST_TIMEOUT_SECONDS = 60.0
_RETRY_STATUSES = frozenset((408, 425, 429, 500, 502, 503, 504))
_SUCCESS_STATUSES = frozenset((200, 202, 207))
_NO_VALID_EVENT = "no_valid_event"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_backoff = tenacity.wait_exponential_jitter(multiplier=0.2, max=10.0, jitter=0.2)


class SendError(Exception):
    """The error for events not accepted by ingest. The message has the reason and the remedy."""


@dataclass(frozen=True)
class Refusal:
    """An event that ingest rejected and stored as a dead letter."""

    index: int
    code: str
    field: str | None


@dataclass(frozen=True)
class Outcome:
    """The result of sending a batch.

    Attributes:
        replayed: whether ingest had already received the batch, so that its events are not counted again.
        unsure: whether events of the batch may be in Kafka twice.
    """

    accepted: int
    refused: tuple[Refusal, ...]
    replayed: bool = False
    unsure: bool = False


class _RetryableError(Exception):
    """The error for a request that may succeed if it is repeated after `after` seconds."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class Client:
    """Sends batches of one pipeline."""

    def __init__(
        self,
        url: str,
        pipeline: str,
        *,
        api_key: str | None = None,
        retry_timeout_seconds: float = RETRY_TIMEOUT_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = f"{url.rstrip('/')}/v1/pipelines/{quote(pipeline, safe='')}/events"
        headers = {"content-type": "application/x-ndjson"}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        is_local = urlsplit(url).hostname in _LOOPBACK
        self._http = httpx.Client(
            headers=headers, timeout=_REQUEST_TIMEOUT_SECONDS, trust_env=not is_local, transport=transport,
        )  # fmt: skip
        self._retry_timeout, self._stopped = retry_timeout_seconds, threading.Event()
        self.retries = 0

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def stop(self) -> None:
        """Stop retrying failed requests."""
        self._stopped.set()

    def send(self, batch: Batch) -> Outcome:
        """Send a batch until ingest has accepted it.

        Raises:
            SendError: ingest refuses the batch, or is busy or silent for too long.
        """
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_RetryableError),
            wait=_wait,
            stop=tenacity.stop_any(
                tenacity.stop_after_delay(self._retry_timeout), tenacity.stop_when_event_set(self._stopped)
            ),
            sleep=tenacity.sleep_using_event(self._stopped),
            before_sleep=self._count_retry,
            reraise=True,
        )
        try:
            return attempts(self._attempt, batch)
        except _RetryableError as error:
            remedy = "check that ingest runs, then send again: accepted events are not counted twice"
            raise SendError(f"{self._url}: {error}; {remedy}") from None

    def _count_retry(self, _state: tenacity.RetryCallState) -> None:
        self.retries += 1

    def _attempt(self, batch: Batch) -> Outcome:
        try:
            answer = self._http.post(self._url, content=batch.body, headers={"idempotency-key": batch.key})
        except httpx.TransportError as error:
            raise _RetryableError(f"no answer ({str(error) or type(error).__name__})") from None
        except (httpx.InvalidURL, httpx.HTTPError) as error:
            raise SendError(f"{self._url}: {error}; write --url as http://host:port") from None
        body = _body(answer)
        has_counts = answer.status_code in _SUCCESS_STATUSES or body.get("code") == _NO_VALID_EVENT
        if has_counts and "accepted" in body:
            if body.get("retry"):
                raise _RetryableError(f"Kafka has not acknowledged {body['retry']} events", _retry_after(answer))
            return _outcome(answer, body)
        reason = f"{answer.status_code} {body.get('code', '')}: {body.get('detail', answer.text[:200])}"
        if answer.status_code in _RETRY_STATUSES:
            raise _RetryableError(reason, _retry_after(answer))
        raise SendError(f"{self._url}: {reason}{_REMEDIES.get(answer.status_code, '')}")


_REMEDIES = {
    401: "; name a file with an API key of this pipeline: --api-key-file PATH",
    403: "; the API key needs the scope events:append",
    404: "; check --pipeline and --url",
}


def _body(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _outcome(answer: httpx.Response, body: dict[str, Any]) -> Outcome:
    rows = [row for row in body.get("results", ()) if row.get("status") == "quarantined"]
    return Outcome(
        accepted=int(body["accepted"]),
        refused=tuple(Refusal(int(row["index"]), str(row.get("code", "")), row.get("field")) for row in rows),
        replayed="idempotency-replayed" in answer.headers,
        unsure="idempotency-unsure" in answer.headers,
    )


def _retry_after(answer: httpx.Response) -> float:
    try:
        return min(60.0, max(0.0, float(answer.headers.get("retry-after", 0))))
    except ValueError:
        return 1.0  # Retry-After may also be a date, which is ignored


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    return max(_backoff(state), error.after if isinstance(error, _RetryableError) else 0.0)
