"""Tests of the annotation that rotates passwords, by passes on a real API server and Postgres.

The Secret changes, processors roll out, and after that the former login is revoked.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
from typing import Any

import psycopg
import pytest

from tidemill_operator.cluster.queue import Result

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration]

ROTATE = "tidemill.dev/rotate-credentials"


@pytest.mark.fault("secrets-rotated", "rolling restart; former logins are revoked after the rollout")
def test_a_rotation_revokes_the_former_logins_two_minutes_after_the_rollout(
    cluster: Any, passes: Any, servers: Any, namespace: str, make: Any, eventually: Any
) -> None:
    orders = make("orders", namespace)
    passes.until(orders, Result.SETTLED)
    clock = [dt.datetime.now(dt.UTC)]

    def once() -> Result:
        controller = passes.controller()
        controller._now = lambda: clock[0]
        return Result(controller.run_pass(orders))

    def secret(name: str, file: str) -> dict[str, str]:
        data = cluster.child(namespace, "Secret", name)["data"]
        return dict(json.loads(base64.b64decode(data[file])))

    def deployment(name: str) -> tuple[str, str]:
        """Return the annotation for the login of a Deployment, and the generation of the Deployment."""
        live = cluster.child(namespace, "Deployment", name)
        marks = live["spec"]["template"]["metadata"]["annotations"]
        return marks.get("tidemill.dev/credentials", ""), str(live["metadata"]["generation"])

    def may_log_in(login: dict[str, str]) -> bool:
        address = servers.postgres
        try:
            psycopg.connect(
                host=address.host,
                port=address.port,
                dbname=address.database,
                user=login["user"],
                password=login["password"],
            ).close()
        except psycopg.OperationalError:
            return False
        return True

    def phase() -> dict[str, str]:
        return dict(cluster.get(orders)["status"].get("credentials", {}))

    former = {file: secret("orders-credentials", file) for file in ("writer.json", "reader.json")}
    processor, api = deployment("orders-processor"), deployment("tidemill-api")

    # During the rollout, former and new logins work.
    cluster.patch(orders, metadata={"annotations": {ROTATE: "first"}})
    once()
    fresh = {file: secret("orders-credentials", file) for file in former}
    for file, login in fresh.items():
        assert (former[file]["user"][-2:], login["user"][-2:]) == ("_a", "_b")
        assert login["password"] != former[file]["password"]
        assert (may_log_in(former[file]), may_log_in(login)) == (True, True), file
    # The API reads its file again without a restart. Processors restart with the new login.
    assert secret("tidemill-api-secrets", "orders.reader.json") == fresh["reader.json"]
    assert deployment("tidemill-api") == api
    assert deployment("orders-processor")[0] != processor[0]
    assert phase() == {"phase": "RollingOut", "rotated": "first"}
    resource = json.dumps(cluster.get(orders))
    assert not any(login["password"] in resource for login in (*former.values(), *fresh.values()))

    # The former logins are revoked two minutes after all processors run with the new logins.
    eventually(lambda: once() is Result.SETTLED, what="the processors have rolled out")
    assert all(may_log_in(login) for login in former.values()), "right after the rollout"
    clock[0] += dt.timedelta(seconds=119)
    once()
    assert all(may_log_in(login) for login in former.values()), "after 119 s"
    clock[0] += dt.timedelta(seconds=2)
    once()
    assert not any(may_log_in(login) for login in former.values()), "after 121 s"
    assert all(may_log_in(login) for login in fresh.values())
    assert phase() == {"phase": "Complete", "rotated": "first"}

    before = cluster.versions(namespace)
    passes.api.written.clear()
    assert once() is Result.SETTLED
    assert passes.api.written == []
    assert cluster.versions(namespace) == before


@pytest.mark.fault("secrets-rotated-rollout-stuck", "the former login remains valid")
def test_the_former_login_works_while_the_rollout_is_stuck(
    cluster: Any, passes: Any, servers: Any, namespace: str, make: Any
) -> None:
    """Running processors use the former login, and it remains valid an hour later."""
    orders = make("orders", namespace)
    passes.until(orders, Result.SETTLED)
    data = cluster.child(namespace, "Secret", "orders-credentials")["data"]
    former = json.loads(base64.b64decode(data["writer.json"]))
    # No pod of the new template can be created.
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": namespace}}
    cluster.api._call(
        "POST", f"/api/v1/namespaces/{namespace}/resourcequotas", body={**quota, "spec": {"hard": {"pods": "0"}}}
    )
    cluster.patch(orders, metadata={"annotations": {ROTATE: "first"}})
    passes.once(orders)
    controller = passes.controller()
    controller._now = lambda: dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    controller.run_pass(orders)
    address = servers.postgres
    psycopg.connect(host=address.host, port=address.port, dbname=address.database, **former).close()
    assert cluster.get(orders)["status"]["credentials"]["phase"] == "RollingOut"
