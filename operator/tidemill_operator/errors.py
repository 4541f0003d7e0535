"""The reasons of conditions and outcomes. Users and alerts depend on the spelling of a reason."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """The reason of an outcome or a condition."""

    APPLIED = "Applied"
    """Everything is as specified."""
    NOT_NEEDED = "NotNeeded"
    """The spec does not need the component."""
    SUSPENDED = "Suspended"
    """The spec suspends the pipeline."""
    WAITING = "Waiting"
    """A change is under way and will complete without help."""
    BLOCKED = "Blocked"
    """The component was not checked, because an earlier step failed."""
    INVALID_SPEC = "InvalidSpec"
    """The resource breaks a rule, and a user has to correct it."""
    NOT_SUPPORTED = "NotSupported"
    """The resource is valid, but cannot be run, or cannot be changed in this way."""
    RESOURCE_CONFLICT = "ResourceConflict"
    """A needed object has another owner."""
    UNREACHABLE = "Unreachable"
    """A server does not answer. The operator retries."""
    REFUSED = "Refused"
    """A server refuses a request, e.g. because of a missing permission, a quota or a full disk."""
    STUCK = "Stuck"
    """A change will not complete without help: no room for pods, a missing image, a crash at start."""
    CONNECTOR_FAILED = "ConnectorFailed"
    """A connector, or a task of it, failed in Kafka Connect. The operator restarts it, with growing delays."""
    NOT_MOVING = "EventsNotMoving"
    """Events wait in the topic, but none of them is counted."""
    STAGE_WAITS = "StageWaits"
    """The Python stage cannot run the user's function. The events wait in Kafka."""
    LOOKUP_UNREAD = "LookupUnread"
    """A processor has started, but cannot read a lookup. The events wait in Kafka."""
    LOOKUP_STALE = "LookupStale"
    """A lookup's rows cannot be updated. The processors keep using the rows from their last successful read."""
    DATA_LOSS = "DataLoss"
    """Acknowledged events or their results are gone, and a user has to decide how to continue."""
    TOPIC_RECREATED = "TopicRecreated"
    """The source topic was deleted and created again. Events that were not counted are gone."""
    LOG_TRUNCATED = "LogTruncated"
    """The topic ends before the last read offset, so Kafka has lost counted events."""
    EVENTS_EXPIRED = "EventsExpired"
    """The topic's retention deleted events before they were read."""
    QUOTA_USED_UP = "QuotaUsedUp"
    """The quota of dead letters or anomalies in Postgres is used up. Further rows are counted, but not stored."""
    HELD_UP = "HeldUp"
    """Windows of an aggregation cannot be closed, published, or scanned for anomalies. The processors retry."""
    WINDOWS_SKIPPED = "WindowsSkipped"
    """The processors skipped data, because windows or values could not be read or published."""
    INTERNAL = "Internal"
    """A defect of Tidemill itself."""


class TidemillError(Exception):
    """An error with a reason, a message, and a remedy (empty if the user can only wait)."""

    def __init__(self, reason: Reason, message: str, remedy: str = "") -> None:
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.reason, self.message, self.remedy = reason, message, remedy


class LockNotHeldError(TidemillError):
    """Another operator holds the pipeline's lock, or has become leader."""
