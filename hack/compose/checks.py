"""Checks of running services: Prometheus' targets and rules, and the queries of Grafana's panels."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
import yaml

from compose.run import Running

# A variable of a dashboard. Variables of time get the values of _TIMES, all others a pattern that matches everything.
_VARIABLE = re.compile(r"\$\{?(?P<name>\w+)(?::\w+)?\}?")
_TIMES = {"__rate_interval": "1m", "__interval": "30s", "__range": "15m"}
# Only the operator in a cluster exports metrics with this prefix: `tidemill up` has neither passes nor scaling.
_CLUSTER_METRIC_PREFIX = "tidemill_operator_"
_PAUSE_SECONDS = 2.0
_RANGE_SECONDS = 3_600.0


@dataclass(frozen=True)
class Panel:
    """One query of a panel.

    Attributes:
        dashboard: The name of the panel's dashboard.
        title: The title of the panel.
        query: The query, with values in place of its variables.
    """

    dashboard: str
    title: str
    query: str

    @property
    def of_clusters(self) -> bool:
        """Whether the query uses metrics that only the operator in a cluster has."""
        return _CLUSTER_METRIC_PREFIX in self.query


class Prometheus:
    """A client of the Prometheus at an address."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/api/v1/"

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the member `data` of Prometheus' answer.

        Raises:
            ValueError: Prometheus refuses the request. The message contains the reason.
        """
        answer = httpx.get(self._url + path, params=parameters, timeout=20, trust_env=False).json()
        if answer["status"] != "success":
            raise ValueError(f"Prometheus refuses {path} {parameters}: {answer['error']}")
        return answer["data"]

    def has_data(self, query: str) -> bool:
        """Return whether a query yields a number within the time range of the dashboards."""
        now = time.time()
        answer = self.ask("query_range", query=query, start=str(now - _RANGE_SECONDS), end=str(now), step="15")
        return any(not math.isnan(float(value)) for series in answer["result"] for _, value in series["values"])


def watch_faults(running: Running, say: Callable[[str], None], *, seconds: float) -> list[str]:
    """Return the faults: targets that are down, rules that fail, alerts that fire, and panels without data.

    Args:
        running: The services of docker-compose.yaml.
        say: The function that prints the results.
        seconds: The time limit for data to appear. Prometheus scrapes some targets every 10 seconds, and a rate needs
            two scrapes.
    """
    prometheus = Prometheus(running.url("prometheus", 9090))
    at_grafana, every = _panels(running)
    deadline = time.monotonic() + seconds
    while True:
        targets, wrong = _targets(prometheus)
        empty = [panel for panel in every if not panel.of_clusters and not at_grafana.has_data(panel.query)]
        if not (wrong or empty) or time.monotonic() > deadline:
            break
        time.sleep(_PAUSE_SECONDS)
    say(f"Prometheus: {targets - len(wrong)} of {targets} targets are up")
    rules, faults = _rules(prometheus)
    say(f"Prometheus: {rules} rules are evaluated")
    of_clusters = sum(panel.of_clusters for panel in every)
    asked = len(every) - of_clusters
    say(f"Grafana: {asked - len(empty)} of {asked} queries have data; {of_clusters} need an operator in a cluster")
    return wrong + faults + [f"Grafana: {item.dashboard}: {item.title}: no data: {item.query}" for item in empty]


def _targets(prometheus: Prometheus) -> tuple[int, list[str]]:
    """Return the number of targets, and the faults of targets."""
    targets = prometheus.ask("targets")["activeTargets"]
    components = {target["labels"].get("component") for target in targets}
    wrong = [
        f"no target has component={name}; check --targets-file"
        for name in ("ingest", "processor", "api", "operator")
        if name not in components
    ]
    wrong += [
        f"{target['labels']['job']} {target['scrapeUrl']}: {target['lastError'] or target['health']}"
        for target in targets
        if target["health"] != "up"
    ]
    return len(targets), [f"Prometheus: {fault}" for fault in wrong]


def _rules(prometheus: Prometheus) -> tuple[int, list[str]]:
    """Return the number of rules, and the faults: rules that fail or fire, or no connected Alertmanager."""
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    wrong = [f"{rule['name']}: {rule['lastError']}" for rule in rules if rule["health"] != "ok"]
    wrong += [
        f"{rule['name']} fires: {', '.join(alert['annotations']['summary'] for alert in rule['alerts'])}"
        for rule in rules
        if rule["state"] == "firing" and rule["labels"].get("severity") != "info"  # severity of the flights' anomalies
    ]
    wrong += [] if rules else ["no rules are loaded; check rule_files in prometheus.yaml"]
    if not prometheus.ask("alertmanagers")["activeAlertmanagers"]:
        wrong.append("no Alertmanager is connected; check alerting in prometheus.yaml")
    return len(rules), [f"Prometheus: {fault}" for fault in wrong]


def _panels(running: Running) -> tuple[Prometheus, list[Panel]]:
    """Return the Prometheus of Grafana's data source, and all panels of Grafana's dashboards.

    Raises:
        ValueError: The home dashboard is not among the provisioned dashboards.
    """
    grafana = running.services["grafana"]
    provisioned = running.stage.path(grafana, "/etc/grafana/provisioning")
    (source,) = yaml.safe_load((provisioned / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioned / "dashboards" / "tidemill.yaml").read_text())["providers"]
    files = {file.name: file for file in sorted(Path(provider["options"]["path"]).glob("*.json"))}
    home = PurePosixPath(grafana.environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]).name
    if home not in files:
        raise ValueError(f"services.grafana: its home dashboard {home} is not among {', '.join(files) or 'none'}")
    panels = [
        Panel(file.stem, title, query)
        for file in files.values()
        for title, query in queries(json.loads(file.read_text()), source["uid"])
    ]
    return Prometheus(source["url"]), panels


def queries(dashboard: dict[str, Any], source: str) -> Iterator[tuple[str, str]]:
    """Yield the title and query of each panel of a dashboard, including panels within rows.

    Raises:
        ValueError: A panel queries another data source.
    """
    for panel in dashboard["panels"]:
        yield from queries({"panels": panel.get("panels", ())}, source)
        for target in panel.get("targets", ()):
            data_source = (target.get("datasource") or panel.get("datasource") or {}).get("uid", source)
            if data_source != source and not data_source.startswith("$"):
                raise ValueError(f"{panel['title']}: there is no data source {data_source}; use {source}")
            yield panel["title"], _VARIABLE.sub(lambda match: _TIMES.get(match["name"], ".*"), target["expr"])
