"""What a processor tells of a Postgres that accepts connections, and refuses to write."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import psycopg
import pytest

from tidemill_chassis.resilience.config import ResilienceConfig
from tidemill_processor import database_link as module
from tidemill_processor.database_link import HOLDS_SECONDS, DatabaseLink


class Link:
    """A link to a database that accepts every connection, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(module, "Committer", MagicMock())
        database: Any = MagicMock()
        database.connect.return_value = MagicMock(closed=False)
        self.link = DatabaseLink(MagicMock(), database, ResilienceConfig().guards().database, lambda: None)
        assert self.link.is_open()

    def refuse(self, error: Exception) -> None:
        """A write fails, and a second later there is another connection."""
        self.link.lose(error)
        self.now += 1.0
        self.link.answers()
        assert self.link.is_open()


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Link:
    return Link(monkeypatch)


REFUSED = [
    psycopg.errors.DiskFull("could not extend file: No space left on device"),
    psycopg.errors.IoError("could not write block"),
    psycopg.errors.ReadOnlySqlTransaction("cannot execute INSERT in a read-only transaction"),
]


@pytest.mark.parametrize("error", REFUSED, ids=lambda error: type(error).__name__)
def test_a_new_connection_does_not_hide_that_writes_are_refused(link: Link, error: Exception) -> None:
    for _ in range(3):
        link.refuse(error)
        assert link.link.error == str(error)
    link.link.stored()
    assert link.link.error == ""


def test_with_nothing_to_write_the_refusal_is_forgotten_after_a_while(link: Link) -> None:
    link.refuse(REFUSED[0])
    link.link.turned()
    assert link.link.error
    link.now += HOLDS_SECONDS
    link.link.turned()
    assert link.link.error == ""


def test_after_a_lost_connection_a_new_one_is_good(link: Link) -> None:
    link.refuse(psycopg.OperationalError("server closed the connection unexpectedly"))
    assert link.link.error == ""
