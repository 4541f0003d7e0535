"""The closed set of reasons why things are as they are, and the error that carries one.

Reasons end up in conditions and events, so users and alerts rely on their spelling.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why an outcome or a condition is what it is."""

    APPLIED = "Applied"
    """All is as the spec asks."""
    NOT_NEEDED = "NotNeeded"
    """The spec asks for nothing here."""
    SUSPENDED = "Suspended"
    """The spec asks for it to stand still."""
    WAITING = "Waiting"
    """It was asked for and is not there yet; it comes without anybody doing anything."""
    BLOCKED = "Blocked"
    """Not looked at, because something before it failed."""
    INVALID_SPEC = "InvalidSpec"
    """The resource breaks a rule; somebody has to correct it."""
    NOT_SUPPORTED = "NotSupported"
    """The resource is valid but cannot be run, or such a change of it cannot be made."""
    RESOURCE_CONFLICT = "ResourceConflict"
    """What is needed belongs to somebody else."""
    UNREACHABLE = "Unreachable"
    """A server does not answer; it is tried again."""
    REFUSED = "Refused"
    """A server answers and says no: a missing right, a quota, a full disk."""
    STUCK = "Stuck"
    """It was asked for and does not come by itself: no room for pods, an image that is not there, a crash at start."""
    NOT_MOVING = "EventsNotMoving"
    """Events wait in the topic and none is counted."""
    DATA_LOSS = "DataLoss"
    """Events that were acknowledged, or what was counted of them, are gone; somebody has to decide how to go on."""
    TOPIC_RECREATED = "TopicRecreated"
    """A source topic was deleted and made anew by somebody; what was not counted is gone."""
    LOG_TRUNCATED = "LogTruncated"
    """Kafka ends before what was read: it lost events that are counted."""
    EVENTS_EXPIRED = "EventsExpired"
    """Events were past the topic's retention before they were read."""
    QUOTA_USED_UP = "QuotaUsedUp"
    """What refused events or anomalies may take in Postgres is used up: they are only counted."""
    HELD_UP = "HeldUp"
    """Windows of an aggregation cannot be closed, scanned or published; it is tried again, others are not held up."""
    WINDOWS_SKIPPED = "WindowsSkipped"
    """Windows, or values of them, could not be read or published and were passed over."""
    INTERNAL = "Internal"
    """A defect of Tidemill itself."""


class TidemillError(Exception):
    """Something cannot be done; the message says what, the remedy what to do about it.

    Attributes:
        reason: from the closed set.
        message: what is wrong, naming the thing and its value.
        remedy: what the user should change; may be empty when nothing but waiting helps.
    """

    def __init__(self, reason: Reason, message: str, remedy: str = "") -> None:
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.reason, self.message, self.remedy = reason, message, remedy


class NotOurTurn(TidemillError):
    """Another operator works on this pipeline, or has taken over: all is left as it is, and nothing is told of it."""
