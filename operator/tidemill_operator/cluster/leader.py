"""Leader election by a Lease.

A leader that cannot renew the Lease in time ends its process.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from tidemill_operator.actuators.kubernetes.api import LEASE, Api, Conflict, Document
from tidemill_operator.cluster_settings import ClusterSettings
from tidemill_operator.errors import NotOurTurn, Reason, TidemillError

log = logging.getLogger(__name__)
_ATTEMPTS = 3
_TIMEOUT_SECONDS = 4.0  # must be less than `Timing.deadline`


@dataclass(frozen=True)
class Timing:
    """Times of the leader election, in seconds."""

    duration: float = 15.0
    deadline: float = 10.0
    retry: float = 2.0


class Term:
    """The state of the Lease as seen by one replica, measured with the clock of that replica."""

    def __init__(self, identity: str, timing: Timing) -> None:
        self._identity, self._timing = identity, timing
        self._seen: tuple[Any, ...] = ()
        self._seen_at = 0.0
        self._renewed_at: float | None = None

    @property
    def leading(self) -> bool:
        """Whether this replica holds the Lease."""
        return self._renewed_at is not None

    def lost(self, now: float) -> bool:
        """Return whether a leader must end, because it has not renewed the Lease for too long."""
        return self._renewed_at is not None and now - self._renewed_at >= self._timing.deadline

    def may_take(self, lease: Document | None, now: float) -> bool:
        """Return whether the Lease is free, expired, or held by this replica.

        Args:
            lease: the live Lease, or None if it does not exist.
            now: monotonic seconds.
        """
        spec = (lease or {}).get("spec") or {}
        sign = (spec.get("holderIdentity"), spec.get("renewTime"), spec.get("leaseTransitions"))
        if sign != self._seen:
            self._seen, self._seen_at = sign, now
        if not spec.get("holderIdentity") or spec["holderIdentity"] == self._identity:
            return True
        return now - self._seen_at >= float(spec.get("leaseDurationSeconds") or self._timing.duration)

    def renewed(self, asked_at: float) -> None:
        """Record that the Lease was renewed by a request sent at `asked_at` (monotonic seconds)."""
        self._renewed_at = asked_at


class Elector:
    """Acquires and renews the Lease in a separate thread."""

    def __init__(
        self,
        api: Api,
        *,
        namespace: str,
        name: str,
        identity: str,
        timing: Timing | None = None,
        end: Callable[[int], Any] = os._exit,
    ) -> None:
        self._api, self._namespace, self._name, self._identity = api, namespace, name, identity
        self._timing, self._end = timing or Timing(), end
        self._term = Term(identity, self._timing)
        self._held: Document | None = None
        self._epoch = 0
        self._won, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="elector", daemon=True)
        self._guard = threading.Thread(target=self._watch, name="elector-guard", daemon=True)

    @classmethod
    def of(cls, settings: ClusterSettings) -> Self:
        """Return the elector of this process, with a separate API client that has short timeouts."""
        return cls(
            Api(timeout_seconds=_TIMEOUT_SECONDS),
            namespace=settings.operator_namespace,
            name=settings.lease_name,
            identity=f"{settings.pod_name}_{secrets.token_hex(4)}",
        )

    def start(self) -> None:
        """Start trying to acquire the Lease."""
        self._thread.start()
        self._guard.start()

    @property
    def leading(self) -> bool:
        """Whether this replica leads."""
        return self._won.is_set()

    @property
    def epoch(self) -> int:
        """The epoch of this leader, which is greater than the epochs of all earlier leaders."""
        return self._epoch

    def outbid(self, seen: int) -> int:
        """Raise the Lease's epoch above `seen`, and return the new epoch.

        Raises:
            NotOurTurn: another replica holds the Lease.
        """
        for _ in range(_ATTEMPTS):
            lease = self._api.get(LEASE, self._namespace, self._name)
            spec = (lease or {}).get("spec") or {}
            if lease is None or spec.get("holderIdentity") != self._identity:
                break
            try:
                self._api.replace({**lease, "spec": {**spec, "leaseTransitions": max(seen, _transitions(lease))}})
            except Conflict:
                continue  # the renewal thread of this process has just written the Lease
            self._epoch = max(self._epoch, seen + 1)
            return self._epoch
        raise NotOurTurn(Reason.WAITING, f"a newer leader is active (leader epoch {seen}, ours is {self._epoch})")

    def wait(self, seconds: float) -> bool:
        """Wait for the Lease, and return whether this replica has it."""
        return self._won.wait(seconds)

    def stop(self) -> None:
        """Stop, and release the Lease, so that another replica can take it at once."""
        self._stopping.set()
        self._thread.join(self._timing.deadline)
        if self.leading:
            try:
                lease = self._api.get(LEASE, self._namespace, self._name)
                if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                    self._api.replace({**lease, "spec": {**lease["spec"], "holderIdentity": ""}})
            except TidemillError as error:
                log.info("the lease was not released: %s", error)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._try()
            except Conflict:
                log.info("another replica wrote the lease first")
            except TidemillError as error:
                log.warning("the lease cannot be %s: %s", "renewed" if self._term.leading else "acquired", error)
            self._stopping.wait(self._timing.retry)

    def _try(self) -> None:
        if self._held is not None:
            # This process wrote the Lease last, so it can renew the Lease without reading it.
            held, self._held, asked_at = self._held, None, time.monotonic()
            self._hold(self._api.replace(self._wanted(held)))
            self._term.renewed(asked_at)
            return
        lease = self._api.get(LEASE, self._namespace, self._name)
        now = time.monotonic()
        if not self._term.may_take(lease, now):
            if self._term.leading:
                log.critical("the lease was taken by %s: this process ends", (lease or {})["spec"]["holderIdentity"])
                self._end(1)
            return
        wanted = self._wanted(lease)
        self._hold(self._api.create(wanted) if lease is None else self._api.replace(wanted))
        self._term.renewed(now)
        if not self._won.is_set():
            log.info("%s leads", self._identity)
            self._won.set()

    def _hold(self, lease: Document) -> None:
        self._held, self._epoch = lease, max(self._epoch, _transitions(lease) + 1)

    def _wanted(self, lease: Document | None) -> Document:
        moment = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = (lease or {}).get("spec") or {}
        ours = before.get("holderIdentity") == self._identity
        spec = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(self._timing.duration),
            "acquireTime": before.get("acquireTime") if ours else moment,
            "renewTime": moment,
            "leaseTransitions": _transitions(lease) + (not ours and lease is not None),
        }
        metadata = (lease or {}).get("metadata") or {"name": self._name, "namespace": self._namespace}
        return {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": spec}

    def _watch(self) -> None:
        """End the process at the deadline, even if an API call hangs or the process was frozen."""
        while not self._stopping.wait(min(0.5, self._timing.retry)):
            if self._term.lost(time.monotonic()):
                log.critical("the lease was not renewed for %g s: this process ends", self._timing.deadline)
                self._end(1)
                return


def _transitions(lease: Document | None) -> int:
    return int(((lease or {}).get("spec") or {}).get("leaseTransitions") or 0)
