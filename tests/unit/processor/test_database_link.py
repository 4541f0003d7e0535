"""Tests of the link to a Postgres that accepts connections but refuses writes."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import psycopg
import pytest

from tidemill_chassis.resilience.config import ResilienceConfig
from tidemill_processor import database_link as module
from tidemill_processor.database_link import STABLE_SECONDS, DatabaseLink


class Link:
    """A link to a database that accepts every connection, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(module, "Committer", MagicMock())
        database: Any = MagicMock()
        database.connect.return_value = MagicMock(closed=False)
        self.link = DatabaseLink(MagicMock(), database, ResilienceConfig().guards().database, lambda: None)
        assert self.link.ensure_open()

    def refuse(self, error: Exception) -> None:
        """Fail a write, and open another connection a second later."""
        self.link.drop(error)
        self.now += 1.0
        self.link.allow_reconnect()
        assert self.link.ensure_open()


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Link:
    return Link(monkeypatch)


REFUSED = [
    psycopg.errors.DiskFull("could not extend file: No space left on device"),
    psycopg.errors.IoError("could not write block"),
    psycopg.errors.ReadOnlySqlTransaction("cannot execute INSERT in a read-only transaction"),
]


@pytest.mark.parametrize("error", REFUSED, ids=lambda error: type(error).__name__)
def test_refused_writes_are_reported_until_results_are_stored(link: Link, error: Exception) -> None:
    for _ in range(3):
        link.refuse(error)
        assert link.link.error == str(error)
    link.link.record_commit()
    assert link.link.error == ""


def test_the_report_of_refused_writes_expires_if_there_is_nothing_to_write(link: Link) -> None:
    link.refuse(REFUSED[0])
    link.link.end_round()
    assert link.link.error
    link.now += STABLE_SECONDS
    link.link.end_round()
    assert link.link.error == ""


def test_a_lost_connection_is_not_reported_after_a_new_connection(link: Link) -> None:
    link.refuse(psycopg.OperationalError("server closed the connection unexpectedly"))
    assert link.link.error == ""
