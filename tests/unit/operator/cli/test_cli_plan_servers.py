"""Tests of the servers that `tidemill plan` uses: those of a running `up`, or of the environment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tidemill_operator.cli.live_servers import LiveServers, find_servers
from tidemill_operator.cli.main import CommandError
from tidemill_operator.processes.child import start_time
from tidemill_operator.settings import Platform


def write_report(folder: Path, **servers: Any) -> None:
    """Write the report of a running `up`, with the pid of this process."""
    report = {
        "pid": os.getpid(),
        "started": start_time(os.getpid()),
        "addresses": {"kafka": "127.0.0.1:9092", "postgres": "postgresql://db:5432/tidemill", "redis": ""},
        "servers": servers,
    }
    (folder / "status.json").write_text(json.dumps(report))


def test_the_servers_of_a_running_up_are_used(tmp_path: Path) -> None:
    """The login is read from the folder, and the uids from the stored pipelines."""
    write_report(tmp_path, postgres={"port": 5544})
    (tmp_path / "postgres-admin.password").write_text("s3cret")
    state = tmp_path / "state" / "shop"
    state.mkdir(parents=True)
    stored = {"document": {"metadata": {"namespace": "shop", "name": "orders", "uid": "u-1"}}, "status": {}}
    (state / "orders.json").write_text(json.dumps(stored))
    live = find_servers(tmp_path, {})
    assert (live.kafka, live.postgres) == ("127.0.0.1:9092", "postgresql://127.0.0.1:5544/tidemill")
    assert live.platform.postgres.password == "s3cret"
    assert live.uids == {"shop/orders": "u-1"}


def test_the_environment_counts_more_than_a_running_up(tmp_path: Path) -> None:
    write_report(tmp_path, postgres={"port": 5544})
    environ = {"TIDEMILL_KAFKA_BROKERS": "k:1", "TIDEMILL_POSTGRES_URL": "postgresql://me:pw@other:1/x"}
    live = find_servers(tmp_path, environ)
    assert (live.kafka, live.postgres) == ("k:1", "postgresql://other:1/x")


def test_an_external_postgres_of_up_must_be_named_again(tmp_path: Path) -> None:
    """The folder does not contain the login."""
    write_report(tmp_path)
    with pytest.raises(
        CommandError, match=r"does not publish the login of postgresql://db:5432/tidemill; set TIDEMILL_POSTGRES_URL"
    ):
        find_servers(tmp_path, {})


def test_the_report_of_an_ended_up_is_ignored(tmp_path: Path) -> None:
    write_report(tmp_path)
    report = json.loads((tmp_path / "status.json").read_text())
    (tmp_path / "status.json").write_text(json.dumps({**report, "started": "long ago"}))
    assert find_servers(tmp_path, {}) == LiveServers(Platform())
