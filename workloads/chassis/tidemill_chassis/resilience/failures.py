"""Recognizes failures of dependencies, and retryable calls, by the exceptions.

A caller's mistake, such as invalid SQL, is not a failure.
"""

from __future__ import annotations

from collections.abc import Callable

Predicate = Callable[[BaseException], bool]

_FAILED_SQLSTATE_CLASSES = frozenset({"08", "28", "3D", "53", "57", "58", "F0", "XX"})
"""SQLSTATE classes of failures: connection, login, missing database, resources, operator intervention, system, config
file, and internal error."""
_READ_ONLY = "25006"
"""Error code for a write to a standby, for example after a failover."""
_SERIALIZATION, _DEADLOCK, _LOCK_NOT_AVAILABLE, _STATEMENT_TIMEOUT = "40001", "40P01", "55P03", "57014"

_KAFKA_NON_FAILURES = frozenset(
    {
        "MSG_SIZE_TOO_LARGE",
        "RECORD_LIST_TOO_LARGE",
        "INVALID_MSG",
        "INVALID_RECORD",
        "INVALID_MSG_SIZE",
        "INVALID_TIMESTAMP",
        "UNKNOWN_TOPIC_OR_PART",
        "UNKNOWN_TOPIC_ID",
        "TOPIC_EXCEPTION",
        "TOPIC_AUTHORIZATION_FAILED",
        "GROUP_AUTHORIZATION_FAILED",
        "POLICY_VIOLATION",
        "TOPIC_ALREADY_EXISTS",
        "INVALID_PARTITIONS",
        "INVALID_CONFIG",
        "OFFSET_OUT_OF_RANGE",
        "_UNKNOWN_TOPIC",
        "_UNKNOWN_PARTITION",
        "_INVALID_ARG",
        "_PARTITION_EOF",
        "_QUEUE_FULL",
        "_PURGE_QUEUE",
        "_PURGE_INFLIGHT",
    }
)

_REDIS_NON_FAILURES = frozenset({"ResponseError", "DataError", "WatchError", "PubSubError"})
_REDIS_FAILURES = frozenset(
    {"OutOfMemoryError", "ReadOnlyError", "ClusterDownError", "MasterDownError", "ConnectionError", "TimeoutError"}
)


def _class_names(error: BaseException) -> list[str]:
    return [cls.__name__ for cls in type(error).__mro__]


def _is_system(error: BaseException) -> bool:
    return isinstance(error, (OSError, TimeoutError))


def database_failed(error: BaseException) -> bool:
    """Return whether Postgres or the connection to it has failed. A statement timeout counts as a failure."""
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate:
        return sqlstate[:2] in _FAILED_SQLSTATE_CLASSES or sqlstate == _READ_ONLY
    names = _class_names(error)
    return _is_system(error) or "OperationalError" in names or "InterfaceError" in names


def database_refuses_writes(error: BaseException) -> bool:
    """Return True if Postgres answers but cannot write.

    For example, the disk is full or broken, or the server is a standby.
    """
    sqlstate = getattr(error, "sqlstate", None) or ""
    return sqlstate[:2] in ("53", "58") or sqlstate == _READ_ONLY


def database_retryable(error: BaseException) -> bool:
    """Return whether a statement with this error is likely to succeed on a retry."""
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate in (_SERIALIZATION, _DEADLOCK, _LOCK_NOT_AVAILABLE):
        return True
    if sqlstate and (sqlstate == _STATEMENT_TIMEOUT or sqlstate[:2] in ("28", "3D", "XX", "F0")):
        return False
    return database_failed(error)


def _kafka_error(error: BaseException) -> object:
    inner = error.args[0] if error.args else None
    return inner if hasattr(inner, "retriable") and hasattr(inner, "name") else error


def kafka_failed(error: BaseException) -> bool:
    """Return whether Kafka or the connection to it has failed.

    A full queue of the client and a missing topic are not failures of Kafka.
    """
    inner = _kafka_error(error)
    name = getattr(inner, "name", None)
    if callable(name) and hasattr(inner, "retriable"):
        return name() not in _KAFKA_NON_FAILURES
    return _is_system(error)


def kafka_retryable(error: BaseException) -> bool:
    """Return whether a Kafka request with this error is likely to succeed on a retry."""
    return not kafka_fatal(_kafka_error(error)) and kafka_failed(error)


def kafka_fatal(error: object) -> bool:
    """Return True if this error, or an earlier error, has made the Kafka client unusable."""
    fatal, name = getattr(error, "fatal", None), getattr(error, "name", None)
    return bool((callable(fatal) and fatal()) or (callable(name) and name() == "_FATAL"))


def redis_failed(error: BaseException) -> bool:
    """Return whether Redis or the connection to it has failed."""
    names = set(_class_names(error))
    if names & _REDIS_FAILURES:
        return True
    if names & _REDIS_NON_FAILURES:
        return False
    return _is_system(error)


def redis_retryable(error: BaseException) -> bool:
    """Return whether a Redis command with this error is likely to succeed on a retry."""
    names = set(_class_names(error))
    if names & {"AuthenticationError", "AuthorizationError", "MaxConnectionsError", "OutOfMemoryError"}:
        return False
    return redis_failed(error)
