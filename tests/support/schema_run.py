"""Runs schemathesis as a command against a service, with all checks and with valid and invalid requests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

LONG = "EXAMPLES" in os.environ
SEED = int(os.environ.get("SEED") or 1)
_SECONDS = 3_600 if LONG else 400
_CONFIG = """
max-stream-events = 3  # of a live connection: hello, snapshot, progress
request-timeout = 60

[[operations]]
include-path-regex = '^{path}$'
[operations.parameters]
{parameters}
[[operations]]
exclude-path-regex = '^{path}$'
phases.coverage.enabled = {coverage}
"""


@dataclass
class Answers:
    """The answers in a run.

    Attributes:
        statuses: the number of answers by operation and status.
        phases: the phases that sent requests.
    """

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    phases: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, report: Path) -> Answers:
        """Read the report of schemathesis."""
        answers = cls()
        for line in report.read_text().splitlines():
            scenario = json.loads(line).get("ScenarioFinished")
            if scenario is None or not scenario["recorder"].get("interactions"):
                continue
            answers.phases.add(scenario["phase"])
            cases = scenario["recorder"]["cases"]
            for identity, interaction in scenario["recorder"]["interactions"].items():
                case, answer = cases[identity]["value"], interaction.get("response")
                label = f"{case['method']} {case['path']}"
                # Some requests test methods that the path does not have; they are not counted.
                if answer is not None and (label == scenario["recorder"]["label"] or scenario["phase"] == "stateful"):
                    answers.statuses.setdefault(label, Counter())[answer["status_code"]] += 1
        return answers


def run_checks(url: str, folder: Path, *, examples: int, known: dict[str, str], paths: str = ".*") -> Answers:
    """Run all checks in all phases. If a check fails, the test fails with the output of schemathesis.

    Args:
        url: the URL of the service.
        folder: a folder for configuration and report.
        examples: the number of examples for each operation. EXAMPLES in the environment overrides it.
        known: values of parameters that exist, such as `path.pipeline`; these are not generated.
        paths: a pattern of the paths with known values. For other paths, all values are generated or taken from
            answers, and the phase `coverage` runs only with EXAMPLES.
    """
    config, report = folder / "schemathesis.toml", folder / "report.ndjson"
    parameters = "".join(f'"{name}" = "{value}"\n' for name, value in known.items())
    config.write_text(_CONFIG.format(path=paths, parameters=parameters, coverage=str(LONG).lower()))
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", f"{url}/openapi.json",
        "--checks=all", "--mode=all", "--phases=examples,coverage,fuzzing,stateful",
        f"--max-examples={os.environ.get('EXAMPLES') or examples}", f"--seed={SEED}",
        "--generation-database=none", "--continue-on-failure", "--no-color", "--report=ndjson",
        f"--report-ndjson-path={report}",
    ]  # fmt: skip
    here = Path(__file__).parent
    # schemathesis is not part of the project, so it runs without coverage.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment = {**inherited, "PYTHONPATH": str(here), "SCHEMATHESIS_HOOKS": "schema_exceptions"}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode:
        pytest.fail(f"SEED={SEED}\n{done.stdout}{done.stderr}", pytrace=False)
    return Answers.read(report)
