"""Tests that the dashboard shows the true state of data in a browser.

Real servers: a Postgres of the module, one API process and one Chromium.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from bench import Bench, MakeBench
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig

pytestmark = pytest.mark.integration

MINUTE = 60_000
NEWEST = 1_790_000_000_000 // MINUTE * MINUTE
USERS, WINDOWS = 985, 40
KEY = "tm_abc_s3cret"
QUICK = {
    "TIDEMILL_RESILIENCE__BREAKERS__DATABASE__OPEN_SECONDS": "2",
    "TIDEMILL_RESILIENCE__RETRIES__DATABASE__INITIAL_SECONDS": "0.1",
}
CHROMIUM = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
expect.set_options(timeout=30_000)


def config(name: str, *, auth: bool = False) -> PipelineConfig:
    def aggregation(name: str, group: str, window: dict[str, Any], metrics: list[dict[str, Any]]) -> dict[str, Any]:
        return {"name": name, "groupBy": [group], "window": window, "metrics": metrics}

    tumbling, count = {"type": "tumbling", "size": "1m"}, {"name": "views", "function": "count"}
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 1},
                "fields": [
                    {"name": "ts", "type": "timestamp", "required": True},
                    {"name": "country", "type": "string"},
                    {"name": "user", "type": "integer"},
                    {"name": "url", "type": "string"},
                ],
                "eventTime": {"field": "ts"},
            },
            "aggregations": [
                aggregation("by_country", "country", tumbling, [count]),
                aggregation("by_user", "user", tumbling, [count]),
                aggregation(
                    "visits",
                    "user",
                    {"type": "session", "gap": "30m"},
                    [count, {"name": "landing", "function": "first", "field": "url"}],
                ),
            ],
            "anomalies": [
                {"name": "burst", "aggregation": "by_country", "metric": "views", "detector": {"type": "zscore"}}
            ],
            "api": {"cacheTtl": "200ms"},
            "auth": {"required": auth},
        }
    )
    refs = tuple(AggregationRef(name=a.name) for a in spec.aggregations)
    return PipelineConfig(namespace="tests", name=name, generation=1, spec=spec, aggregations=refs)


def views(user: int, window: int) -> int:
    """Return the views of a user in a window; window 0 is the newest.

    The users with the most views have most of them in the oldest window.
    """
    return 1_000 if user % 123 == 7 and window == WINDOWS - 1 else 1 + user % 5


LARGEST = sorted(range(USERS), key=lambda user: -sum(views(user, w) for w in range(WINDOWS)))[:8]


def fill(bench: Bench) -> None:
    """Insert windows and sessions by SQL."""
    for table in ("by_country_v1", "by_user_v1", "visits_v1"):
        bench.query("SELECT {s}.ensure_partition(%s, %s, 30)", (table, NEWEST // 86_400_000))
    minutes = "to_timestamp(%s / 1000.0) - w * interval '1 minute'"
    bench.query(
        "INSERT INTO {s}.by_country_v1 (country, window_start, _rev, _count)"
        f" SELECT c, {minutes}, 1, 100 + w FROM unnest(ARRAY['NO', 'SE', NULL]) AS c, generate_series(0, %s) AS w"
        " RETURNING 1",
        (NEWEST, WINDOWS - 1),
    )
    bench.query(
        f'INSERT INTO {{s}}.by_user_v1 ("user", window_start, _rev, _count) SELECT u, {minutes}, 1,'
        " CASE WHEN u %% 123 = 7 AND w = %s THEN 1000 ELSE 1 + u %% 5 END"
        " FROM generate_series(0, %s) AS u, generate_series(0, %s) AS w RETURNING 1",
        (NEWEST, WINDOWS - 1, USERS - 1, WINDOWS - 1),
    )
    bench.query(
        'INSERT INTO {s}.visits_v1 ("user", window_start, window_end, _rev, _count, _first_url, _first_at_url)'
        f" SELECT u, {minutes}, {minutes} + u * interval '7 minutes', 1, u + 3, '/shop', ARRAY[0, 0]"
        " FROM (SELECT u, u AS w FROM generate_series(1, 12) AS u) AS one RETURNING 1",
        (NEWEST, NEWEST),
    )
    bench.query("UPDATE {s}._aggregations SET rev = 1, closed_until = %s RETURNING 1", (NEWEST - 5 * MINUTE,))
    bench.query("UPDATE {s}._readers SET watermark = %s RETURNING 1", (NEWEST,))


@dataclass
class Site:
    """The API process with its pipelines: `shop` has windows, `fresh` has no windows, `vault` requires a key."""

    postgres: Any
    shop: Any
    url: str

    def at(self, **chosen: str) -> str:
        """Return the URL of the page with parts chosen, such as `pipeline=`."""
        return f"{self.url}/#" + "&".join(f"{name}={value}" for name, value in chosen.items())


@pytest.fixture(scope="module")
def site(own_servers: Callable[..., Any], make_bench_at: MakeBench) -> Site:
    servers = own_servers(needs=("postgres",), durable=True)
    shop = make_bench_at(config("shop"), at=servers)
    make_bench_at(config("fresh"), at=servers)
    vault = make_bench_at(config("vault", auth=True), at=servers)
    key = {"id": "abc", "sha256": hashlib.sha256(b"s3cret").hexdigest(), "scopes": ["query:read"]}
    (vault.folder / "secrets" / "vault" / "api-keys.json").write_text(json.dumps({"keys": [key]}))
    for bench in (shop, vault):
        fill(bench)
    shop.start(module="tidemill_api", TIDEMILL_PIPELINE="", **QUICK)
    up = ("healthy", "degraded")
    shop.eventually(lambda: shop.health().get("status") in up, seconds=120, what="the API answers")
    return Site(servers.handles["postgres"], shop, f"http://127.0.0.1:{shop.ports[-1]}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if executable is None:
        assert "CI" not in os.environ, "CI must have a browser, which hack/setup.sh installs"
        pytest.skip(f"none of {', '.join(CHROMIUM)} is installed; `make setup` does that on Debian")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Yield a new tab. An uncaught exception of the page fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab, errors = context.new_page(), []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    yield tab
    context.close()
    assert errors == []


def state(page: Page, panel: str, expected_state: str, *, seconds: float = 30) -> str:
    """Wait until a panel is in a state, and return its text."""
    node = page.locator(f"#{panel}-state")
    expect(node).to_have_attribute("data-state", expected_state, timeout=seconds * 1_000)
    return node.text_content() or ""


def lines(page: Page) -> list[str]:
    return page.locator("#legend button").all_text_contents()


def drawn(page: Page) -> int:
    """Return the number of lines or bars of the chart."""
    return page.locator("#chart svg .line path").count()


def test_chart_and_table_show_open_and_closed_windows_and_live_changes(site: Site, page: Page) -> None:
    page.goto(site.at(pipeline="shop", aggregation="by_country", metric="views"))
    state(page, "chart", "fresh")
    assert sorted(lines(page)) == ["NO", "SE", "null"]
    expect(page.locator("#chart-title")).to_have_text("views in windows of 1m")
    expect(page.locator("#connection")).to_have_text(re.compile("live"))
    assert page.locator("#windows tbody tr").count() == 60
    assert state(page, "windows", "truncated") == "The latest 60; there are older ones."
    assert page.locator("#windows .tag.open").count() == 3 * 6
    site.shop.query("UPDATE {s}.by_country_v1 SET _count = 77777, _rev = 2 WHERE country = 'NO' AND window_start"
                    " = to_timestamp(%s / 1000.0) RETURNING 1", (NEWEST,))  # fmt: skip
    site.shop.query("UPDATE {s}._aggregations SET rev = 2 WHERE name = 'by_country' RETURNING 1")
    expect(page.locator("#windows")).to_contain_text("77,777")


def test_sessions_are_drawn_as_bars_from_start_to_end(site: Site, page: Page) -> None:
    """Nothing remains of the aggregation that was shown before."""
    page.goto(site.at(pipeline="shop", aggregation="by_country", metric="views"))
    state(page, "chart", "fresh")
    page.select_option("#aggregation", "visits")
    expect(page.locator("#chart-title")).to_have_text("views in sessions that end after 30m without events")
    text = state(page, "chart", "truncated")
    assert text == "The 8 of 12 groups with the largest views in one of the latest 12 sessions."
    assert lines(page) == [str(user) for user in range(12, 4, -1)]
    assert drawn(page) == 8
    expect(page.locator("#windows thead")).to_have_text("Session startLasteduserviewslandingState")
    expect(page.locator("#windows tbody tr").first).to_contain_text("7 min14/shop")


def test_the_largest_groups_are_those_of_all_windows_in_the_time_span(site: Site, page: Page) -> None:
    """Groups that are largest because of older windows are shown, although a snapshot has only the newest windows."""
    page.goto(site.at(pipeline="shop", aggregation="by_user", metric="views"))
    text = state(page, "chart", "truncated")
    assert text == "The 8 of 985 groups with the largest views over this time."
    assert sorted(map(int, lines(page))) == sorted(LARGEST)
    page.select_option("#span", "30")
    state(page, "chart", "truncated")
    assert all(int(user) % 5 == 4 for user in lines(page)), "other groups are the largest in the newest windows"


def test_panels_say_that_no_row_matches_a_filter(site: Site, page: Page) -> None:
    page.goto(site.at(pipeline="shop", aggregation="by_country", metric="views"))
    state(page, "chart", "fresh")
    page.fill("#filter-country", "XX")
    page.keyboard.press("Enter")
    for panel in ("chart", "windows"):
        assert state(page, panel, "filtered") == "No row matches the filter country = XX."
    assert (lines(page), page.locator("#windows tr").count()) == ([], 0)
    page.fill("#filter-country", "null")
    page.keyboard.press("Enter")
    state(page, "chart", "fresh")
    assert lines(page) == ["null"]


def test_panels_name_the_column_of_a_filter_of_the_wrong_type(site: Site, page: Page) -> None:
    page.goto(site.at(pipeline="shop", aggregation="by_user", metric="views", **{"group.user": "x"}))
    for panel in ("chart", "windows"):
        assert "user" in state(page, panel, "wrong")
    state(page, "anomalies", "empty")


def test_panels_of_a_pipeline_without_windows_say_that_they_are_empty(site: Site, page: Page) -> None:
    page.goto(site.at(pipeline="fresh"))
    for panel in ("chart", "windows"):
        assert state(page, panel, "empty").startswith("No windows yet")
    assert state(page, "anomalies", "empty") == "None found."
    assert state(page, "dead-letters", "empty") == "None: every event counts."


def test_a_panel_that_waits_for_an_answer_shows_no_old_rows(site: Site, page: Page) -> None:
    """The panel says that it loads."""
    page.goto(site.at(pipeline="shop", aggregation="by_country", metric="views"))
    state(page, "chart", "fresh")
    requests: list[Route] = []
    page.route("**/aggregates/by_user?*", lambda route: requests.append(route))
    page.select_option("#aggregation", "by_user")
    for panel in ("chart", "windows"):
        assert state(page, panel, "loading") == "Loading …"
    assert (lines(page), drawn(page), page.locator("#windows tr").count()) == ([], 0, 0)
    page.unroute("**/aggregates/by_user?*")
    assert requests
    page.reload()
    state(page, "chart", "truncated")


def test_an_error_of_one_panel_leaves_the_others_unchanged(site: Site, page: Page) -> None:
    """The errors are an answer that cannot be drawn, and an answer with status 500."""
    page.route("**/anomalies?*", lambda route: route.fulfill(json={"data": [{"group": None}]}))
    page.route("**/dead-letters?*", lambda route: route.fulfill(status=500, json={"code": "x", "detail": "a defect"}))
    page.goto(site.at(pipeline="shop", aggregation="by_country", metric="views"))
    assert state(page, "anomalies", "broken").startswith("This panel cannot be drawn")
    assert state(page, "dead-letters", "unavailable") == "There is no data yet: a defect."
    state(page, "chart", "fresh")
    assert state(page, "figures", "fresh") == ""
    assert page.locator("#windows tbody tr").count() == 60


def test_a_pipeline_that_requires_a_key_is_listed_only_with_the_key(site: Site, page: Page) -> None:
    """The page names the pipelines that a key opens, and can forget a key."""
    page.goto(site.url)
    state(page, "windows", "empty")
    listed = page.locator("#pipeline option")
    assert listed.all_text_contents() == ["fresh", "shop"]
    page.click("#keys-button")
    page.fill("#key", "tm_abc_wrong")
    page.click("text=Use this key")
    expect(page.locator("#key-fault")).to_contain_text("This key opens no pipeline here")
    page.fill("#key", KEY)
    page.click("text=Use this key")
    expect(listed).to_have_text(["fresh", "shop", "vault"])
    page.select_option("#pipeline", "vault")
    state(page, "chart", "fresh")
    expect(page.locator("#connection")).to_have_text(re.compile("live"))
    page.click("#keys-button")
    expect(page.locator("#keys")).to_contain_text("tm_abc_… opens vault")
    assert "s3cret" not in page.content()
    page.click("text=Forget")
    expect(page.locator("#key-title")).to_have_text(re.compile("There is no pipeline vault here"))
    expect(page.locator("#content")).to_be_hidden()
    expect(listed).to_have_text(["fresh", "shop"])


def test_a_revoked_key_hides_the_data_and_is_named(site: Site, page: Page) -> None:
    page.goto(site.at(pipeline="vault"))
    page.fill("#key", KEY)
    page.click("text=Use this key")
    state(page, "chart", "fresh")
    refusal = {"code": "unauthorized", "detail": "this pipeline has no such API key"}
    page.route("**/v1/pipelines/vault**", lambda route: route.fulfill(status=401, json=refusal))
    expect(page.locator("#key-title")).to_have_text("vault does not accept the key any more.")
    expect(page.locator("#content")).to_be_hidden()


def test_an_address_with_an_unknown_name_shows_another_with_a_message(site: Site, page: Page) -> None:
    """The message says what the address names, and what is shown instead."""
    page.goto(site.at(pipeline="shop", aggregation="gone", metric="views"))
    expect(page.locator("#message")).to_have_text("There is no aggregation gone; by_country is shown.")
    page.goto(site.at(pipeline="shop", aggregation="visits", metric="landing"))
    expect(page.locator("#message")).to_have_text("visits has no numeric metric landing; views is shown.")


def test_a_page_is_never_wider_than_a_phones_screen(site: Site, page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for aggregation in ("by_user", "visits"):
        page.goto(site.at(pipeline="shop", aggregation=aggregation, metric="views"))
        state(page, "chart", "truncated")
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_without_postgres_panels_show_the_last_answers_as_stale(site: Site, page: Page) -> None:
    """A page that is opened during the outage shows them too. A query that was never answered shows no data."""
    address = site.at(pipeline="shop", aggregation="by_country", metric="views")
    page.goto(address)
    state(page, "chart", "fresh")
    before = dt.datetime.now(dt.UTC)
    site.postgres.kill()
    try:
        for _ in range(2):
            for panel in ("figures", "chart", "windows", "anomalies"):
                stale = re.match(
                    r"Stale since (.+) UTC, .+ ago: the database does not answer",
                    state(page, panel, "stale"),
                )
                assert stale is not None
                since = dt.datetime.fromisoformat(f"{stale[1]}+00:00")
                assert abs((since - before).total_seconds()) < 60
            expect(page.locator("#connection")).to_have_text("stale")
            assert sorted(lines(page)) == ["NO", "SE", "null"]
            page.reload()
        page.fill("#filter-country", "QQ")
        page.keyboard.press("Enter")
        for panel in ("chart", "windows"):
            assert state(page, panel, "unavailable").startswith("There is no data yet: ")
        assert (lines(page), page.locator("#windows tr").count()) == ([], 0)
    finally:
        site.postgres.start()
    state(page, "figures", "fresh")
    for panel in ("chart", "windows"):
        state(page, panel, "filtered")


def test_without_the_api_panels_say_that_it_does_not_answer(site: Site, page: Page) -> None:
    """This test must be the last of the module, because it ends the API."""
    page.goto(site.at(pipeline="shop", aggregation="by_country", metric="views"))
    state(page, "chart", "fresh")
    site.shop.stop()
    for panel in ("figures", "chart", "windows", "anomalies", "dead-letters"):
        assert state(page, panel, "unreachable").startswith("The API does not answer (no connection): stale since ")
    expect(page.locator("#connection")).to_have_text("no answer")
