"""Tests of the alert rules with promtool and the situations of tests/alerts, and of their runbooks."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import runbooks
from running.prometheus import program

ROOT = Path(__file__).resolve().parents[3]
FILE = ROOT / "charts/tidemill/files/alerts.yaml"
RULES = [rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]]
TESTS = sorted((ROOT / "tests/alerts").glob("*.yaml"))
RUNBOOKS = ROOT / "docs/runbooks"
RUNBOOK_URL = "https://tidemill.dev/runbooks/"
OF_NO_PIPELINE = {"TidemillNoTargets", "TidemillOperatorGone", "TidemillNoLeader"}
Labels = dict[str, str]


def rule_id(rule: dict[str, Any]) -> str:
    return "-".join([rule["alert"], *(value for name, value in rule["labels"].items() if name != "severity")])


def expected(alert: str) -> Iterator[list[Labels]]:
    """Yield, for each situation that checks an alert, the labels of all alerts that must fire."""
    for path in TESTS:
        for situation in yaml.safe_load(path.read_text())["tests"]:
            checks = [check for check in situation["alert_rule_test"] if check["alertname"] == alert]
            if checks:
                yield [item["exp_labels"] for check in checks for item in check["exp_alerts"]]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_as_expected_in_each_situation(path: Path) -> None:
    run = subprocess.run(
        [program("promtool"), "test", "rules", str(path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("rule", RULES, ids=rule_id)
def test_an_alert_has_a_situation_in_which_it_fires_and_one_in_which_it_does_not(rule: dict[str, Any]) -> None:
    situations = [[rule["labels"].items() <= labels.items() for labels in fired] for fired in expected(rule["alert"])]
    assert any(any(fired) for fired in situations), "tests/alerts has no situation in which the alert fires"
    assert any(not any(fired) for fired in situations), "tests/alerts has no situation in which the alert does not fire"


@pytest.mark.parametrize("rule", RULES, ids=rule_id)
def test_an_alert_has_a_runbook_and_a_severity_and_names_its_pipeline(rule: dict[str, Any]) -> None:
    """The runbook's file has the alert's name in lower case."""
    page = f"{rule['alert'].lower()}.md"
    assert rule["annotations"]["runbook_url"] == RUNBOOK_URL + page
    assert (RUNBOOKS / page).read_text().startswith(f"# {rule['alert']}\n")
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    if rule["alert"] not in OF_NO_PIPELINE:
        assert "$labels.pipeline" in rule["annotations"]["summary"]


@pytest.mark.parametrize("rule", RULES, ids=rule_id)
def test_an_alert_only_selects_targets_of_tidemill(rule: dict[str, Any]) -> None:
    """Targets of other software may also have the label component="api"."""
    selectors = re.findall(r"\b[a-z_]+(?=\{)(\{[^}]*\})", rule["expr"])
    assert selectors
    assert [text for text in selectors if 'job="tidemill"' not in text] == []


def test_every_runbook_has_an_alert() -> None:
    names = {rule["alert"].lower() for rule in RULES}
    assert {page.stem for page in RUNBOOKS.glob("*.md")} - {"README"} == names


def test_the_list_of_runbooks_equals_the_generated_list() -> None:
    assert runbooks.render() == (RUNBOOKS / "README.md").read_text(), "run: make generate"
