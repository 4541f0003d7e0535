"""Tests of leader election by a Lease in memory: two replicas never lead at the same time."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from tidemill_operator.actuators.kubernetes.api import Api, Conflict
from tidemill_operator.cluster.leader import Elector, LeaseView, Timing
from tidemill_operator.errors import LockNotHeldError, Reason, TidemillError
from waiting import eventually

TIMING = Timing(lease_seconds=15.0, renew_deadline_seconds=10.0, retry_seconds=2.0)


def lease(holder: str, *, renewed: str = "t0", transitions: int = 0) -> dict[str, Any]:
    return {"spec": {"holderIdentity": holder, "renewTime": renewed, "leaseTransitions": transitions}}


@pytest.mark.parametrize(
    ("reason", "current", "expected"),
    [
        ("there is no Lease", None, True),
        ("the Lease was released", lease(""), True),
        ("this replica holds the Lease", lease("me"), True),
        ("another replica holds the Lease, and may be alive", lease("other"), False),
    ],
)
def test_a_lease_of_another_replica_is_not_taken_at_first_sight(
    reason: str, current: dict[str, Any] | None, expected: bool
) -> None:
    assert LeaseView("me", TIMING).can_acquire(current, 100.0) is expected, reason


def test_the_lease_of_another_is_free_after_its_duration_by_our_clock() -> None:
    """The written time is from the clock of another machine, so it is ignored."""
    view = LeaseView("me", TIMING)
    assert [view.can_acquire(lease("other", renewed="1990-01-01"), now) for now in (0.0, 14.9, 15.0)] == [
        False,
        False,
        True,
    ]


def test_a_renewal_by_the_holder_restarts_the_duration() -> None:
    view = LeaseView("me", TIMING)
    assert not view.can_acquire(lease("other", renewed="t0"), 0.0)
    assert not view.can_acquire(lease("other", renewed="t1"), 14.0)
    assert not view.can_acquire(lease("other", renewed="t1"), 28.0)
    assert view.can_acquire(lease("other", renewed="t1"), 29.0)


def test_a_leader_is_lost_at_the_deadline_and_before_another_may_begin() -> None:
    """The deadline is counted from the request, not from the answer."""
    view = LeaseView("me", TIMING)
    assert not view.missed_deadline(1_000.0)
    view.record_renewal(100.0)
    assert [view.missed_deadline(now) for now in (109.9, 110.0)] == [False, True]
    assert TIMING.renew_deadline_seconds < TIMING.lease_seconds


class Leases:
    """A Lease as the API server keeps it: a write must name the current version."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.away = False
        self.reads = 0
        self._lock = threading.Lock()

    def _answer(self) -> None:
        if self.away:
            raise TidemillError(Reason.UNREACHABLE, "away")

    def get(self, *_: object) -> dict[str, Any] | None:
        self._answer()
        self.reads += 1
        with self._lock:
            return copy.deepcopy(self.lease)

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        self._answer()
        with self._lock:
            if self.lease is not None:
                raise Conflict(Reason.WAITING, "exists")
            self.lease = copy.deepcopy(body)
            self.lease["metadata"]["resourceVersion"] = "1"
            return copy.deepcopy(self.lease)

    def replace(self, body: dict[str, Any]) -> dict[str, Any]:
        self._answer()
        with self._lock:
            assert self.lease is not None
            version = self.lease["metadata"]["resourceVersion"]
            if body["metadata"]["resourceVersion"] != version:
                raise Conflict(Reason.WAITING, "changed")
            self.lease = copy.deepcopy(body)
            self.lease["metadata"]["resourceVersion"] = str(int(version) + 1)
            return copy.deepcopy(self.lease)

    def edit(self, **spec: Any) -> None:
        """Write the Lease as another client."""
        with self._lock:
            assert self.lease is not None
            self.lease["spec"] |= spec
            self.lease["metadata"]["resourceVersion"] = str(int(self.lease["metadata"]["resourceVersion"]) + 1)


FAST = Timing(lease_seconds=1.0, renew_deadline_seconds=0.6, retry_seconds=0.05)


def elector(leases: Leases, identity: str, ended: Callable[[int], Any] = lambda _: None) -> Elector:
    started_elector = Elector(
        cast(Api, leases), namespace="n", name="l", identity=identity, timing=FAST, exit_process=ended
    )
    started_elector.start()
    return started_elector


def test_a_second_replica_leads_as_soon_as_the_first_releases_the_lease() -> None:
    leases = Leases()
    first = elector(leases, "first")
    assert first.wait(10.0)
    second = elector(leases, "second")
    assert not second.wait(1.5), "the first replica renews the Lease"
    first.stop()
    assert second.wait(10.0)
    assert leases.lease is not None
    assert leases.lease["spec"]["holderIdentity"] == "second"
    assert leases.lease["spec"]["leaseTransitions"] == 1
    second.stop()


def test_a_leader_that_cannot_renew_ends_its_process() -> None:
    leases, ended = Leases(), threading.Event()
    leader = elector(leases, "me", lambda code: ended.set() if code == 1 else None)
    assert leader.wait(10.0)
    leases.away = True
    assert ended.wait(10.0)
    leader.stop()


def test_a_leader_whose_lease_was_taken_ends_its_process() -> None:
    """The leader was frozen for longer than the duration of the Lease."""
    leases, ended = Leases(), threading.Event()
    leader = elector(leases, "me", lambda code: ended.set() if code == 1 else None)
    assert leader.wait(10.0)
    leases.edit(holderIdentity="other")
    assert ended.wait(10.0)
    leader.stop()


def test_only_one_of_many_replicas_leads() -> None:
    leases = Leases()
    replicas = [elector(leases, str(number)) for number in range(6)]
    eventually(lambda: any(replica.leading for replica in replicas), what="a replica leads", seconds=10.0)
    time.sleep(4 * FAST.retry_seconds)  # meanwhile the others have tried
    assert sum(replica.leading for replica in replicas) == 1
    for replica in replicas:
        replica.stop()


def test_a_leader_renews_without_reading() -> None:
    leases = Leases()
    leader = elector(leases, "me")
    assert leader.wait(10.0)
    before = leases.reads
    time.sleep(10 * FAST.retry_seconds)
    assert leases.reads == before
    leases.edit(holderIdentity="me", renewTime="2026-01-01T00:00:00Z")
    time.sleep(10 * FAST.retry_seconds)
    assert leader.leading
    assert leases.reads == before + 1, "after a refused write the Lease is read once"
    leader.stop()


def test_each_leader_has_a_greater_epoch() -> None:
    leases, epochs = Leases(), []
    for identity in ("first", "second", "third"):
        leader = elector(leases, identity)
        assert leader.wait(10.0)
        epochs.append(leader.epoch)
        leader.stop()
    assert epochs == [1, 2, 3]


def test_a_leader_that_sees_a_greater_epoch_takes_the_next_one() -> None:
    """The Lease was deleted once. The leader continues with a greater epoch, and later leaders too."""
    leases = Leases()
    leader = elector(leases, "me")
    assert leader.wait(10.0)
    assert leader.raise_epoch_above(7) == 8
    time.sleep(4 * FAST.retry_seconds)
    assert (leader.leading, leader.epoch) == (True, 8)
    leader.stop()
    following = elector(leases, "following")
    assert following.wait(10.0)
    assert following.epoch == 9
    following.stop()


def test_a_replaced_leader_cannot_raise_its_epoch() -> None:
    leases = Leases()
    leader = elector(leases, "me")
    assert leader.wait(10.0)
    leases.edit(holderIdentity="other", leaseTransitions=1)
    with pytest.raises(LockNotHeldError, match="epoch 2"):
        leader.raise_epoch_above(2)
    leader.stop()
