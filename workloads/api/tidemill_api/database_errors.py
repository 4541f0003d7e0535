"""Classifies errors of Postgres, and translates them into HTTP problems."""

from __future__ import annotations

import psycopg

from tidemill_chassis.resilience.config import BreakerOpen, DeadlineExceeded
from tidemill_chassis.resilience.failures import database_failed, database_retryable
from tidemill_chassis.web.problems import Problem, unavailable

DATABASE_UNAVAILABLE = "database_unavailable"
"""The `code` in the body of a 503 answer while Postgres is down."""
_STATEMENT_TIMEOUT = "57014"
_NOT_READY = frozenset({"28000", "28P01", "3D000", "3F000", "42P01", "42703", "42501"})
"""Postgres error codes that occur while the operator still sets up a pipeline."""


def is_not_ready(error: BaseException) -> bool:
    """Return True if a pipeline's login, schema or tables do not exist yet."""
    if getattr(error, "sqlstate", None) in _NOT_READY or isinstance(error, FileNotFoundError):
        return True
    text = str(error)  # if Postgres refuses a connection, the error has no SQLSTATE
    refused = "authentication failed" in text or ("FATAL:" in text and "does not exist" in text)
    return isinstance(error, psycopg.OperationalError) and refused


class QueryTooLong(Exception):
    """The error for a query that exceeded its time limit. Postgres itself works."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the query was not answered within {seconds:g} s")


def is_query_timeout(error: BaseException) -> bool:
    """Return whether a query was ended because it took too long."""
    return isinstance(error, QueryTooLong) or getattr(error, "sqlstate", None) == _STATEMENT_TIMEOUT


def is_failure(error: BaseException) -> bool:
    """Return True for a failure of Postgres or of the connection to Postgres."""
    return not is_not_ready(error) and not is_query_timeout(error) and database_failed(error)


def is_retryable(error: BaseException) -> bool:
    """Return whether a database error is likely to disappear on a retry. Timeouts are not retried."""
    timed_out = isinstance(error, TimeoutError | psycopg.errors.ConnectionTimeout)
    return not timed_out and not is_not_ready(error) and not is_query_timeout(error) and database_retryable(error)


def affects_all_pipelines(error: BaseException) -> bool:
    """Return whether an error affects all pipelines, not just the pipeline of the query."""
    sqlstate_class = (getattr(error, "sqlstate", None) or "")[:2]
    of_one_pipeline = sqlstate_class in ("53", "58", "XX") or "too many connections for" in str(error)
    return is_failure(error) and not of_one_pipeline


def is_outage(error: BaseException) -> bool:
    """Return whether the API should send an older answer instead of this error."""
    if isinstance(error, BreakerOpen | DeadlineExceeded | OSError) or is_not_ready(error):
        return True
    return is_query_timeout(error) or is_failure(error)


def is_table_error(error: BaseException) -> bool:
    """Return whether other tables may be readable in spite of the error."""
    return (getattr(error, "sqlstate", None) or "")[:2] in ("42", "XX") or not is_outage(error)


def as_problem(error: BaseException, pipeline: str) -> Problem | None:
    """Return the HTTP problem for a database error. Return None for a defect of the API."""
    if isinstance(error, BreakerOpen):
        detail = "the database does not answer; try again later"
        return unavailable(DATABASE_UNAVAILABLE, detail, error.retry_after_seconds)
    if is_query_timeout(error):
        return Problem(
            504,
            "query_timeout",
            "the query takes too long; ask for a shorter range, fewer groups or metrics, or a longer granularity",
        )
    if isinstance(error, DeadlineExceeded | TimeoutError):
        return unavailable(DATABASE_UNAVAILABLE, "the database did not answer in time; try again later", 5)
    if is_not_ready(error):
        return unavailable("pipeline_not_ready", f"{pipeline} is not set up yet; try again in a moment", 5)
    if is_failure(error) or isinstance(error, OSError):
        return unavailable(DATABASE_UNAVAILABLE, "the database does not answer; try again later", 5)
    if isinstance(error, psycopg.errors.ProgramLimitExceeded):  # the sketches of a row need over 1 GB
        return Problem(
            400,
            "query_too_large",
            "one row of the answer combines too much data; ask for a shorter range, a finer granularity, or fewer"
            " metrics",
        )
    if isinstance(error, psycopg.DataError):
        return Problem(
            400,
            "value_refused",
            f"the database refuses a value of the query: {str(error).partition(chr(10))[0]}",
        )
    return None
