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
from tidemill_operator.errors import LockNotHeldError, Reason, TidemillError

log = logging.getLogger(__name__)
_ATTEMPTS = 3
_TIMEOUT_SECONDS = 4.0  # must be less than `Timing.deadline`


@dataclass(frozen=True)
class Timing:
    """Times of the leader election, in seconds."""

    lease_seconds: float = 15.0
    renew_deadline_seconds: float = 10.0
    retry_seconds: float = 2.0


class LeaseView:
    """The state of the Lease as seen by one replica, measured with the clock of that replica."""

    def __init__(self, identity: str, timing: Timing) -> None:
        self._identity, self._timing = identity, timing
        self._observed: tuple[Any, ...] = ()
        self._observed_at = 0.0
        self._renewed_at: float | None = None

    @property
    def leading(self) -> bool:
        """Whether this replica holds the Lease."""
        return self._renewed_at is not None

    def missed_deadline(self, now: float) -> bool:
        """Return whether a leader must end, because it has not renewed the Lease for too long."""
        return self._renewed_at is not None and now - self._renewed_at >= self._timing.renew_deadline_seconds

    def can_acquire(self, lease: Document | None, now: float) -> bool:
        """Return whether the Lease is free, expired, or held by this replica.

        Args:
            lease: the live Lease, or None if it does not exist.
            now: monotonic seconds.
        """
        spec = (lease or {}).get("spec") or {}
        observed = (spec.get("holderIdentity"), spec.get("renewTime"), spec.get("leaseTransitions"))
        if observed != self._observed:
            self._observed, self._observed_at = observed, now
        if not spec.get("holderIdentity") or spec["holderIdentity"] == self._identity:
            return True
        return now - self._observed_at >= float(spec.get("leaseDurationSeconds") or self._timing.lease_seconds)

    def record_renewal(self, sent_at: float) -> None:
        """Record that a request sent at `sent_at` (monotonic seconds) renewed the Lease."""
        self._renewed_at = sent_at


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
        exit_process: Callable[[int], Any] = os._exit,
    ) -> None:
        self._api, self._namespace, self._name, self._identity = api, namespace, name, identity
        self._timing, self._end = timing or Timing(), exit_process
        self._lease_view = LeaseView(identity, self._timing)
        self._last_lease: Document | None = None
        self._epoch = 0
        self._acquired, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="elector", daemon=True)
        self._guard = threading.Thread(target=self._enforce_deadline, name="elector-guard", daemon=True)

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
        return self._acquired.is_set()

    @property
    def epoch(self) -> int:
        """The epoch of this leader, which is greater than the epochs of all earlier leaders."""
        return self._epoch

    def raise_epoch_above(self, epoch: int) -> int:
        """Raise the Lease's epoch above `epoch`, and return the new epoch.

        Raises:
            LockNotHeldError: another replica holds the Lease.
        """
        for _ in range(_ATTEMPTS):
            lease = self._api.get(LEASE, self._namespace, self._name)
            spec = (lease or {}).get("spec") or {}
            if lease is None or spec.get("holderIdentity") != self._identity:
                break
            try:
                self._api.replace({**lease, "spec": {**spec, "leaseTransitions": max(epoch, _transitions(lease))}})
            except Conflict:
                continue  # the renewal thread of this process has just written the Lease
            self._epoch = max(self._epoch, epoch + 1)
            return self._epoch
        raise LockNotHeldError(
            Reason.WAITING, f"a newer leader is active (leader epoch {epoch}, ours is {self._epoch})"
        )

    def wait(self, seconds: float) -> bool:
        """Wait for the Lease, and return whether this replica has it."""
        return self._acquired.wait(seconds)

    def stop(self) -> None:
        """Stop, and release the Lease, so that another replica can take it at once."""
        self._stopping.set()
        self._thread.join(self._timing.renew_deadline_seconds)
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
                self._acquire_or_renew()
            except Conflict:
                log.info("another replica wrote the lease first")
            except TidemillError as error:
                log.warning("the lease cannot be %s: %s", "renewed" if self._lease_view.leading else "acquired", error)
            self._stopping.wait(self._timing.retry_seconds)

    def _acquire_or_renew(self) -> None:
        if self._last_lease is not None:
            # This process wrote the Lease last, so it can renew the Lease without reading it.
            own_lease, self._last_lease, sent_at = self._last_lease, None, time.monotonic()
            self._record_lease(self._api.replace(self._desired_lease(own_lease)))
            self._lease_view.record_renewal(sent_at)
            return
        lease = self._api.get(LEASE, self._namespace, self._name)
        now = time.monotonic()
        if not self._lease_view.can_acquire(lease, now):
            if self._lease_view.leading:
                log.critical("the lease was taken by %s: this process ends", (lease or {})["spec"]["holderIdentity"])
                self._end(1)
            return
        desired = self._desired_lease(lease)
        self._record_lease(self._api.create(desired) if lease is None else self._api.replace(desired))
        self._lease_view.record_renewal(now)
        if not self._acquired.is_set():
            log.info("%s leads", self._identity)
            self._acquired.set()

    def _record_lease(self, lease: Document) -> None:
        self._last_lease, self._epoch = lease, max(self._epoch, _transitions(lease) + 1)

    def _desired_lease(self, lease: Document | None) -> Document:
        renew_time = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = (lease or {}).get("spec") or {}
        ours = before.get("holderIdentity") == self._identity
        spec = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(self._timing.lease_seconds),
            "acquireTime": before.get("acquireTime") if ours else renew_time,
            "renewTime": renew_time,
            "leaseTransitions": _transitions(lease) + (not ours and lease is not None),
        }
        metadata = (lease or {}).get("metadata") or {"name": self._name, "namespace": self._namespace}
        return {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": spec}

    def _enforce_deadline(self) -> None:
        """End the process at the deadline, even if an API call hangs or the process was frozen."""
        while not self._stopping.wait(min(0.5, self._timing.retry_seconds)):
            if self._lease_view.missed_deadline(time.monotonic()):
                log.critical(
                    "the lease was not renewed for %g s: this process ends", self._timing.renew_deadline_seconds
                )
                self._end(1)
                return


def _transitions(lease: Document | None) -> int:
    return int(((lease or {}).get("spec") or {}).get("leaseTransitions") or 0)
