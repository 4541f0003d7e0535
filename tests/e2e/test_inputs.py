"""Tests of a user's function, reference data and Secrets in a cluster.

One pipeline has signed webhooks, a Python stage and two lookups. Each event passes all of them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from demo.compare import fetch_windows
from demo.installation import BUILT, ROOT
from images.catalogue import Image
from images.engine import Engine, own_engine

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes, pytest.mark.slow]

_KEY = "a secret that the shop knows"
_BASE_MS = 1_767_607_200_000
_ENRICH = """\
from regions import REGIONS


def enrich(event):
    if event["number"] % 10 == 0:
        return None
    if event["number"] % 33 == 0:
        raise ValueError("no such order")
    order = {**event, "region": REGIONS[event["country"]]}
    return [order, order] if event["number"] % 7 == 0 else order
"""
_ENRICH_IN_IMAGE = _ENRICH.replace("from regions", "import inflection\n\nfrom regions").replace(
    'REGIONS[event["country"]]', 'inflection.pluralize(REGIONS[event["country"]])'
)
_REGIONS = {"NO": "north", "SE": "north", "DE": "south"}
_CATEGORIES = {"s0": "toys", "s1": "tools"}
_PRICES = {"basic": Decimal("1.50"), "large": Decimal("20.00")}
# Runs statements in Postgres. It runs in the operator's pod, which can reach Postgres.
_SHOP = """\
import os, sys, psycopg
with psycopg.connect(os.environ["TIDEMILL_POSTGRES_URL"], autocommit=True) as connection:
    for statement in sys.argv[1:]:
        connection.execute(statement)
"""


def regions_module(region_by_country: dict[str, str]) -> str:
    """Return the module that the user's file imports."""
    return f"REGIONS = {region_by_country!r}\n"


def plans_csv(price_by_plan: dict[str, Decimal]) -> str:
    """Return the table of plans as CSV."""
    return "plan,price\n" + "".join(f"{plan},{price}\n" for plan, price in price_by_plan.items())


def order(number: int) -> dict[str, Any]:
    """Return the order with a number. One in three products is not in the database."""
    return {
        "number": number,
        "country": ("NO", "SE", "DE")[number % 3],
        "sku": f"s{number // 3 % 3}",
        "plan": ("basic", "large")[number // 9 % 2],
        "ts": _BASE_MS + 1000 * (number % 3_000),
    }


def counts(
    numbers: Iterable[int],
    areas: dict[str, str] = _REGIONS,
    categories: dict[str, str] = _CATEGORIES,
    prices: dict[str, Decimal] = _PRICES,
) -> Counter[tuple[str, str | None, str]]:
    """Return the expected number of events of these orders, by region, category and price."""
    orders: Counter[tuple[str, str | None, str]] = Counter()
    for number in numbers:
        event = order(number)
        if number % 10 and number % 33:
            key = areas[event["country"]], categories.get(event["sku"]), str(prices[event["plan"]])
            orders[key] += 2 if number % 7 == 0 else 1
    return orders


def pipeline(namespace: str, table: str) -> dict[str, Any]:
    """Return the pipeline of the shop."""
    product = {"table": table, "key": "sku", "secretRef": {"name": "shop-db"}, "refresh": "2s"}
    plan = {"configMap": "plans", "file": "plans.csv", "key": "plan"}
    price = {"name": "price", "type": "decimal", "scale": 2}
    kinds = {"number": "integer", "region": "string", "sku": "string", "plan": "string", "ts": "timestamp"}
    webhook = {"name": "shop", "signature": "hmac", "header": "X-Shop-Signature", "idHeader": "X-Shop-Id"}
    return {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": "orders", "namespace": namespace},
        "spec": {
            "source": {
                "topic": {"partitions": 2},
                "webhooks": [{**webhook, "secretRef": {"name": "webhooks", "key": "shop"}}],
                "fields": [{"name": name, "type": kind, "required": True} for name, kind in kinds.items()],
                "eventTime": {"field": "ts", "maxDisorder": "1h"},
            },
            "lookups": [
                {"name": "products", "on": "sku", "from": product, "fields": [{"name": "category", "type": "string"}]},
                {"name": "plans", "on": "plan", "from": plan, "fields": [price]},
            ],
            "transform": {"python": {"configMap": "enrich", "file": "enrich.py", "function": "enrich"}},
            "aggregations": [
                {
                    "name": "by_region",
                    "groupBy": ["region", "category", "price"],
                    "window": {"type": "tumbling", "size": "1h"},
                    "metrics": [{"name": "orders", "function": "count"}],
                    "retention": "3650d",
                }
            ],
            "reclaimPolicy": "Delete",
            "processor": {"flushInterval": "250ms"},
        },
    }


@dataclass
class Shop:
    """The pipeline, and a client that posts orders to its webhook."""

    world: Any
    platform: Any
    table: str
    client: httpx.Client
    sent: list[int] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        return str(self.platform.namespace)

    def post(self, number: int, *, key: str = _KEY) -> httpx.Response:
        """Post an order with a signature by `key`."""
        body = json.dumps(order(number)).encode()
        signature = hmac.new(key.encode(), body, hashlib.sha256).hexdigest()
        url = f"{self.platform.url('ingest')}/v1/pipelines/orders/webhooks/shop"
        headers = {"X-Shop-Signature": signature, "X-Shop-Id": f"delivery-{number}", "Content-Type": "application/json"}
        return self.client.post(url, content=body, headers=headers)

    def send(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            answer = self.post(number)
            assert answer.status_code == 200, answer.text
            self.sent.append(number)

    def counted(self) -> Counter[tuple[str, str | None, str]]:
        """Return the number of events in the API's answers, by region, category and price."""
        orders: Counter[tuple[str, str | None, str]] = Counter()
        for page in fetch_windows(self.client, self.platform.url("api"), "orders", "by_region"):
            for row in page.rows:
                orders[row["region"], row["category"], row["price"]] += row["orders"]
        return orders

    def apply_object(self, kind: str, name: str, content: dict[str, str]) -> None:
        """Create or change a ConfigMap or a Secret."""
        member = "data" if kind == "ConfigMap" else "stringData"
        metadata = {"name": name, "namespace": self.namespace}
        document = {"apiVersion": "v1", "kind": kind, "metadata": metadata, member: content}
        self.world.kubectl("apply", "--filename", "-", stdin=json.dumps(document))

    def refresh_files(self, component: str) -> None:
        """Make the kubelet update the files of pods now. Otherwise, the update takes up to two minutes."""
        for pod in self.world.pods(self.namespace, component):
            name = pod["metadata"]["name"]
            mark = f"e2e.tidemill.dev/files={secrets.token_hex(4)}"
            self.world.kubectl("annotate", "pod", name, "--namespace", self.namespace, "--overwrite", mark)

    def database(self, *statements: str) -> None:
        self.world.in_operator("python", "-c", _SHOP, *statements)

    def status(self) -> dict[str, Any]:
        return dict(self.world.get("analyticspipeline", "orders", self.namespace)["status"])


@pytest.fixture(scope="module")
def shop(world: Any) -> Iterator[Shop]:
    """Create ConfigMaps, Secrets and a table, and then the pipeline that reads them."""
    namespace = world.new_namespace("inputs")
    name = namespace.replace("-", "_")
    login, table = f"e2e_{name}", f"{name}_shop.products"
    password = secrets.token_hex(12)
    with httpx.Client(timeout=60.0, trust_env=False) as client:
        platform = world.platform(pipeline(namespace, table))
        shop = Shop(world, platform, table, client)
        rows = ", ".join(f"('{sku}', '{category}')" for sku, category in _CATEGORIES.items())
        shop.database(
            f"CREATE SCHEMA {name}_shop",
            f"CREATE TABLE {table} (sku text PRIMARY KEY, category text)",
            f"INSERT INTO {table} VALUES {rows}",
            f"CREATE ROLE {login} LOGIN PASSWORD '{password}'",
            f"GRANT USAGE ON SCHEMA {name}_shop TO {login}",
            f"GRANT SELECT ON {table} TO {login}",
        )
        try:
            url = httpx.URL(world.in_operator("printenv", "TIDEMILL_POSTGRES_URL").strip())
            database = {"host": url.host, "port": str(url.port or 5432), "dbname": url.path.strip("/")}
            shop.apply_object("Secret", "shop-db", {**database, "username": login, "password": password})
            shop.apply_object("Secret", "webhooks", {"shop": _KEY})
            shop.apply_object("ConfigMap", "enrich", {"enrich.py": _ENRICH, "regions.py": regions_module(_REGIONS)})
            shop.apply_object("ConfigMap", "plans", {"plans.csv": plans_csv(_PRICES)})
            platform.apply()
            yield shop
            platform.leave()
        finally:
            world.begin_to_delete_namespaces([namespace])
            shop.database(f"DROP SCHEMA {name}_shop CASCADE", f"DROP ROLE {login}")


def test_signed_events_pass_the_users_function_and_both_lookups(shop: Shop, eventually: Callable[..., Any]) -> None:
    """Each event counts once with the values of file, ConfigMap and table. A wrong signature is refused."""
    eventually(lambda: shop.post(10).status_code == 200, what="ingest has the secret")  # The function drops it.
    refused = [shop.post(1, key="another"), shop.post(2, key="")]
    assert [(answer.status_code, answer.json()["code"]) for answer in refused] == [(401, "wrong_signature")] * 2
    shop.send(range(100, 220))
    assert shop.post(219).status_code == 200  # The delivery is repeated.
    expected = counts(shop.sent)
    eventually(lambda: shop.counted() == expected, what=lambda: f"{shop.counted()} is {expected}", pause_seconds=0.5)
    letters = shop.client.get(f"{shop.platform.url('api')}/v1/pipelines/orders/dead-letters").json()["data"]
    failed = [number for number in shop.sent if number % 33 == 0 and number % 10]
    assert [letter["reason"] for letter in letters] == ["transform_failed"] * len(failed)
    (pod,) = shop.world.pods(shop.namespace, "stage")
    assert not any(mount["name"] == "secrets" for mount in pod["spec"]["containers"][0]["volumeMounts"])


def test_edits_of_config_maps_and_of_the_table_take_effect(shop: Shop, eventually: Callable[..., Any]) -> None:
    """No event is lost or counted twice during the edits. Later events count with the new content."""
    before, sent = shop.counted(), len(shop.sent)
    areas, prices = {**_REGIONS, "NO": "arctic"}, {**_PRICES, "basic": Decimal("2.50")}
    categories = {**_CATEGORIES, "s1": "hardware"}
    shop.apply_object("ConfigMap", "enrich", {"enrich.py": _ENRICH, "regions.py": regions_module(areas)})
    shop.apply_object("ConfigMap", "plans", {"plans.csv": plans_csv(prices)})
    shop.database(f"UPDATE {shop.table} SET category = 'hardware' WHERE sku = 's1'")
    shop.refresh_files("stage")
    shop.refresh_files("processor")
    # All of these are orders from Norway for the product s1, in the plan `basic`.
    probes = (number for number in range(1_011, 3_000, 18) if number % 10 and number % 33 and number % 7)

    def new_content_is_used() -> bool:
        total = sum(shop.counted().values())
        last = shop.counted()
        shop.send([next(probes)])
        eventually(lambda: sum(shop.counted().values()) == total + 1, what="the event counts", pause_seconds=0.2)
        return list(shop.counted() - last) == [("arctic", "hardware", "2.50")]

    eventually(new_content_is_used, what="the new content is used")
    between = shop.counted()
    assert sum((between - before).values()) == len(shop.sent) - sent
    more = range(4_000, 4_100)
    shop.send(more)
    expected = between + counts(more, areas, categories, prices)
    eventually(lambda: shop.counted() == expected, what=lambda: f"{shop.counted()} is {expected}", pause_seconds=0.5)


def test_a_stage_that_scales_up_under_load_counts_each_event_once(shop: Shop, eventually: Callable[..., Any]) -> None:
    """`kubectl get` and the status show the number of processes."""
    before = shop.counted()
    scaling = {"minReplicas": 2, "maxReplicas": 2, "pollInterval": "1s", "lookback": "2s"}
    shop.platform.document["spec"]["transform"]["python"]["scaling"] = scaling
    shop.world.kubectl("apply", "--filename", "-", stdin=json.dumps(shop.platform.document))
    sending = iter(range(5_000, 9_000))

    def scaled() -> bool:
        shop.send([next(sending) for _ in range(10)])
        status = shop.status()
        return status.get("stageReplicas") == 2 and status.get("stageScaling", {}).get("current") == 2

    eventually(scaled, what=lambda: f"the stage has two processes: {shop.status()}")
    eventually(lambda: len(ready(shop.world.pods(shop.namespace, "stage"))) == 2, what="both processes are ready")
    areas, prices = {**_REGIONS, "NO": "arctic"}, {**_PRICES, "basic": Decimal("2.50")}
    sent = [number for number in shop.sent if number >= 5_000]
    expected = before + counts(sent, areas, {**_CATEGORIES, "s1": "hardware"}, prices)
    eventually(lambda: shop.counted() == expected, what=lambda: f"{shop.counted()} is {expected}", pause_seconds=0.5)
    head, row = shop.world.kubectl("get", "apl", "orders", "--namespace", shop.namespace).splitlines()
    assert head.split()[:5] == ["NAME", "READY", "LAG", "REPLICAS", "STAGE"]
    assert row.split()[3:5] == ["1", "2"]
    assert shop.status()["stageLag"] <= len(shop.sent)


@pytest.mark.matrix
def test_a_stage_runs_in_an_image_of_the_user(shop: Shop, eventually: Callable[..., Any], tmp_path: Path) -> None:
    """docs/python-stage.md describes the image. It has a package that the processor's image lacks."""
    before = shop.counted()
    reference = f"tidemill.local/stage:{secrets.token_hex(4)}"
    with engine() as builder:
        archive = build(builder, reference, tmp_path)
    shop.world.load_image(archive)
    python = shop.platform.document["spec"]["transform"]["python"]
    del python["configMap"]
    python |= {
        "image": reference,
        "file": "/app/enrich.py",
        "scaling": {"maxReplicas": 1, "pollInterval": "1s", "lookback": "2s"},
    }
    shop.world.kubectl("apply", "--filename", "-", stdin=json.dumps(shop.platform.document))
    sending = iter(range(10_000, 14_000))

    def replaced() -> bool:
        shop.send([next(sending) for _ in range(10)])
        pods = shop.world.pods(shop.namespace, "stage")
        return {pod["spec"]["containers"][0]["image"] for pod in ready(pods)} == {reference} and len(pods) == 1

    eventually(replaced, what=lambda: f"only the new image runs: {shop.status()}")
    earlier = shop.counted()
    more = range(20_000, 20_100)
    shop.send(more)
    areas = {country: f"{area}s" for country, area in _REGIONS.items()}
    categories, prices = {**_CATEGORIES, "s1": "hardware"}, {**_PRICES, "basic": Decimal("2.50")}
    between = sum(counts(range(10_000, next(sending))).values())
    eventually(
        lambda: sum((shop.counted() - before).values()) == between + sum(counts(more).values()),
        what="all events count",
        pause_seconds=0.5,
    )
    assert counts(more, areas, categories, prices) <= shop.counted() - earlier


@contextmanager
def engine() -> Iterator[Engine]:
    """Yield the Docker engine that has built the processor's image."""
    running = Engine()
    if running.answers():
        yield running
        return
    with own_engine() as started:
        yield started


def build(builder: Engine, reference: str, folder: Path) -> Path:
    """Build the image of the page docs/python-stage.md, and write it to a file.

    Packages from this machine replace the stage that installs packages, because the test has no package registry.
    """
    page = (ROOT / "docs" / "python-stage.md").read_text()
    (text,) = re.findall(r"```dockerfile\n(.*?)```", page, re.DOTALL)
    _, _, last_stage = text.partition("\n\n")
    images = json.loads(BUILT.read_text())["images"]
    (processor,) = [image for image in images if image.startswith("tidemill/processor:")]
    last_stage = re.sub(r"FROM tidemill/processor:\S+", f"FROM {processor}", last_stage)
    (folder / "Dockerfile").write_text(last_stage.replace("--from=packages /app", "app"))
    (folder / "enrich.py").write_text(_ENRICH_IN_IMAGE)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--target", str(folder / "app"), "inflection==0.5.1"], check=True)
    (folder / "app" / "regions.py").write_text(regions_module(_REGIONS))
    builder.build(Image(reference, "Dockerfile", ()), reference, {}, folder / "build.log", context=folder)
    builder.save([reference], folder / "image.tar")
    return folder / "image.tar"


def ready(pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the pods that are ready."""
    wanted = {"type": "Ready", "status": "True"}
    return [
        pod
        for pod in pods
        if any(wanted.items() <= condition.items() for condition in pod["status"].get("conditions", ()))
    ]
