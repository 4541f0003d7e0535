"""Tests of error classification: which errors are failures of a dependency, and which calls are retried."""

from __future__ import annotations

import psycopg
import pytest
import redis
from confluent_kafka import KafkaError, KafkaException

from tidemill_chassis.resilience import failures


def _kafka(code: int, *, fatal: bool = False, retriable: bool = False) -> KafkaException:
    return KafkaException(KafkaError(code, "x", fatal, retriable))


@pytest.mark.parametrize(
    ("dependency", "error", "failed", "retryable"),
    [
        ("database", psycopg.OperationalError("connection refused"), True, True),
        ("database", psycopg.InterfaceError("connection is closed"), True, True),
        ("database", psycopg.errors.AdminShutdown(), True, True),
        ("database", psycopg.errors.ConnectionFailure(), True, True),
        ("database", psycopg.errors.TooManyConnections(), True, True),
        ("database", psycopg.errors.DiskFull(), True, True),
        ("database", psycopg.errors.ReadOnlySqlTransaction(), True, True),
        ("database", psycopg.errors.QueryCanceled(), True, False),
        ("database", psycopg.errors.InvalidPassword(), True, False),
        ("database", psycopg.errors.SerializationFailure(), False, True),
        ("database", psycopg.errors.DeadlockDetected(), False, True),
        ("database", psycopg.errors.LockNotAvailable(), False, True),
        ("database", psycopg.errors.SyntaxError(), False, False),
        ("database", psycopg.errors.UndefinedTable(), False, False),
        ("database", psycopg.errors.InsufficientPrivilege(), False, False),
        ("database", psycopg.errors.NumericValueOutOfRange(), False, False),
        ("database", psycopg.errors.UniqueViolation(), False, False),
        ("database", psycopg.ProgrammingError("the query has 2 placeholders"), False, False),
        ("database", psycopg.DataError("NUL"), False, False),
        ("database", TimeoutError(), True, True),
        ("database", ConnectionResetError(), True, True),
        ("database", KeyError("our own bug"), False, False),
        ("redis", redis.ConnectionError(), True, True),
        ("redis", redis.TimeoutError(), True, True),
        ("redis", redis.exceptions.BusyLoadingError(), True, True),
        ("redis", redis.exceptions.ReadOnlyError(), True, True),
        ("redis", redis.exceptions.OutOfMemoryError(), True, False),
        ("redis", redis.AuthenticationError(), True, False),
        ("redis", redis.ResponseError("WRONGTYPE"), False, False),
        ("redis", redis.DataError(), False, False),
        ("redis", OSError(), True, True),
        ("redis", ValueError(), False, False),
        ("kafka", _kafka(KafkaError._ALL_BROKERS_DOWN), True, True),
        ("kafka", _kafka(KafkaError._TRANSPORT), True, True),
        ("kafka", _kafka(KafkaError._MSG_TIMED_OUT), True, True),
        ("kafka", _kafka(KafkaError.NOT_ENOUGH_REPLICAS, retriable=True), True, True),
        ("kafka", _kafka(KafkaError._FATAL, fatal=True), True, False),
        ("kafka", _kafka(KafkaError.MSG_SIZE_TOO_LARGE), False, False),
        ("kafka", _kafka(KafkaError.UNKNOWN_TOPIC_OR_PART), False, False),
        ("kafka", _kafka(KafkaError._UNKNOWN_TOPIC), False, False),
        ("kafka", _kafka(KafkaError.TOPIC_AUTHORIZATION_FAILED), False, False),
        ("kafka", _kafka(KafkaError.OFFSET_OUT_OF_RANGE), False, False),
        ("kafka", _kafka(KafkaError._PARTITION_EOF), False, False),
        ("kafka", BufferError("Local: Queue full"), False, False),
        ("kafka", TimeoutError(), True, True),
        ("kafka", UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), False, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_an_error_is_a_failure_and_is_retried_as_its_kind_demands(
    dependency: str, error: Exception, failed: bool, retryable: bool
) -> None:
    assert getattr(failures, f"{dependency}_failed")(error) is failed
    assert getattr(failures, f"{dependency}_retryable")(error) is retryable


@pytest.mark.parametrize("code", [KafkaError._TRANSPORT, KafkaError.MSG_SIZE_TOO_LARGE])
def test_a_delivery_callbacks_error_is_judged_like_the_exception(code: int) -> None:
    """Delivery callbacks get a KafkaError, which is no exception and is therefore wrapped."""
    assert failures.kafka_failed(KafkaException(KafkaError(code))) is (code == KafkaError._TRANSPORT)


@pytest.mark.parametrize(
    ("error", "fatal", "reason"),
    [
        (KafkaError(KafkaError.FENCED_INSTANCE_ID, "", True), True, "the client reports the fatal error itself"),
        (KafkaError(KafkaError._FATAL), True, "later calls report the code without the fatal mark"),
        (KafkaError(KafkaError._TRANSPORT), False, "the client reconnects"),
        (ValueError("no client's"), False, "the error does not come from the client"),
    ],
)
def test_a_kafka_client_is_lost_after_fatal_errors_only(error: object, fatal: bool, reason: str) -> None:
    assert failures.kafka_fatal(error) is fatal, reason
