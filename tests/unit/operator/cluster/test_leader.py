"""The Lease: who may take it, who must end, and that two replicas never lead at the same time."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from tidemill_operator.actuators.kubernetes.api import Api, Conflict
from tidemill_operator.cluster.leader import Elector, Term, Timing
from tidemill_operator.errors import NotOurTurn, Reason, TidemillError
from waiting import eventually

TIMING = Timing(duration=15.0, deadline=10.0, retry=2.0)


def lease(holder: str, *, renewed: str = "t0", transitions: int = 0) -> dict[str, Any]:
    return {"spec": {"holderIdentity": holder, "renewTime": renewed, "leaseTransitions": transitions}}


@pytest.mark.parametrize(
    ("reason", "found", "expected"),
    [
        ("there is none", None, True),
        ("it was given back", lease(""), True),
        ("it is ours", lease("me"), True),
        ("it is another's, and may be alive", lease("other"), False),
    ],
)
def test_who_may_take_it_at_first_sight(reason: str, found: dict[str, Any] | None, expected: bool) -> None:
    assert Term("me", TIMING).may_take(found, 100.0) is expected, reason


def test_another_s_lease_is_free_when_it_was_not_renewed_for_its_duration_by_our_own_clock() -> None:
    """The time written in it is another machine's."""
    term = Term("me", TIMING)
    assert [term.may_take(lease("other", renewed="1990-01-01"), now) for now in (0.0, 14.9, 15.0)] == [
        False,
        False,
        True,
    ]


def test_a_sign_of_its_holder_starts_the_duration_anew() -> None:
    term = Term("me", TIMING)
    assert not term.may_take(lease("other", renewed="t0"), 0.0)
    assert not term.may_take(lease("other", renewed="t1"), 14.0)
    assert not term.may_take(lease("other", renewed="t1"), 28.0)
    assert term.may_take(lease("other", renewed="t1"), 29.0)


def test_a_leader_is_lost_at_the_deadline_and_before_another_may_begin() -> None:
    """Counted from when it asked, not from when it was answered."""
    term = Term("me", TIMING)
    assert not term.lost(1_000.0)
    term.renewed(100.0)
    assert [term.lost(now) for now in (109.9, 110.0)] == [False, True]
    assert TIMING.deadline < TIMING.duration


class Leases:
    """One Lease, kept as the API server does: a write has to name the version that it was made from."""

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
        """Somebody else writes it."""
        with self._lock:
            assert self.lease is not None
            self.lease["spec"] |= spec
            self.lease["metadata"]["resourceVersion"] = str(int(self.lease["metadata"]["resourceVersion"]) + 1)


FAST = Timing(duration=1.0, deadline=0.6, retry=0.05)


def elector(leases: Leases, identity: str, ended: Callable[[int], Any] = lambda _: None) -> Elector:
    made = Elector(cast(Api, leases), namespace="n", name="l", identity=identity, timing=FAST, end=ended)
    made.start()
    return made


def test_one_of_two_leads_and_the_other_follows_at_once_when_it_is_given_back() -> None:
    leases = Leases()
    first = elector(leases, "first")
    assert first.wait(10.0)
    second = elector(leases, "second")
    assert not second.wait(1.5), "the first renews it"
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
    """It was frozen longer than the Lease lasts."""
    leases, ended = Leases(), threading.Event()
    leader = elector(leases, "me", lambda code: ended.set() if code == 1 else None)
    assert leader.wait(10.0)
    leases.edit(holderIdentity="other")
    assert ended.wait(10.0)
    leader.stop()


def test_no_two_of_many_ever_hold_it() -> None:
    leases = Leases()
    many = [elector(leases, str(number)) for number in range(6)]
    eventually(lambda: any(one.leading for one in many), what="one leads", seconds=10.0)
    time.sleep(4 * FAST.retry)  # the others have tried meanwhile
    assert sum(one.leading for one in many) == 1
    for one in many:
        one.stop()


def test_a_leader_renews_without_reading() -> None:
    leases = Leases()
    leader = elector(leases, "me")
    assert leader.wait(10.0)
    before = leases.reads
    time.sleep(10 * FAST.retry)
    assert leases.reads == before
    leases.edit(holderIdentity="me", renewTime="2026-01-01T00:00:00Z")
    time.sleep(10 * FAST.retry)
    assert leader.leading
    assert leases.reads == before + 1, "a write that was refused is looked into once"
    leader.stop()


def test_each_leader_has_a_greater_epoch() -> None:
    leases, epochs = Leases(), []
    for identity in ("first", "second", "third"):
        leader = elector(leases, identity)
        assert leader.wait(10.0)
        epochs.append(leader.epoch)
        leader.stop()
    assert epochs == [1, 2, 3]


def test_a_leader_that_sees_a_greater_epoch_counts_on_from_there() -> None:
    """Its Lease was deleted some day; it still is the leader, and so are those after it, with greater epochs."""
    leases = Leases()
    leader = elector(leases, "me")
    assert leader.wait(10.0)
    assert leader.outbid(7) == 8
    time.sleep(4 * FAST.retry)
    assert (leader.leading, leader.epoch) == (True, 8)
    leader.stop()
    following = elector(leases, "following")
    assert following.wait(10.0)
    assert following.epoch == 9
    following.stop()


def test_who_was_replaced_outbids_nobody() -> None:
    leases = Leases()
    leader = elector(leases, "me")
    assert leader.wait(10.0)
    leases.edit(holderIdentity="other", leaseTransitions=1)
    with pytest.raises(NotOurTurn, match="epoch 2"):
        leader.outbid(2)
    leader.stop()
