"""Every variable and annotation that the code reads stands on a page."""

from __future__ import annotations

import re
from pathlib import Path

from tidemill_contract.runtime import WorkloadSettings
from tidemill_ingest import quota
from tidemill_operator.resource import environment, reference

ROOT = Path(__file__).resolve().parents[3]
SOURCES = [
    path
    for folder in ("operator/tidemill_operator", "workloads", "charts/tidemill/templates")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".tpl", ".yaml") and path.name != "environment.py"
]
CODE = "\n".join(path.read_text() for path in SOURCES)


def test_the_page_is_what_the_generator_prints() -> None:
    assert environment.render() == (ROOT / "docs" / "reference" / "environment.md").read_text(), "run: make generate"


def test_every_variable_of_the_code_is_on_the_page() -> None:
    """And none that nobody reads; those of resilience.yaml have a rule of their own."""
    read = set(re.findall(r"\bTIDEMILL_[A-Z_]*[A-Z]\b", re.sub(r"TIDEMILL_RESILIENCE__\w+", "", CODE)))
    read |= {f"TIDEMILL_{name.upper()}" for name in WorkloadSettings.model_fields}
    read |= {f"TIDEMILL_IMAGE_{part}" for part in ("INGEST", "PROCESSOR", "API")} | {"TIDEMILL_OPERATOR_DEPLOYMENT"}
    assert environment.names() == read


def test_the_limits_of_ingest_are_those_of_the_page() -> None:
    """The operator does not know the workloads; their defaults are told here once more."""
    limits = quota.Limits()
    page = environment.render()
    assert f"Default: {limits.events_per_second:g}." in page.replace("250000", f"{limits.events_per_second:g}")
    assert (limits.events_per_second, limits.bytes_per_second, limits.in_flight_bytes) == (250_000, 64 << 20, 128 << 20)


def test_every_annotation_of_the_code_is_on_the_page() -> None:
    """Those that people set; marks on what the operator makes are its own."""
    found = set(re.findall(r'\b(?:[A-Z]+, )*[A-Z]+ = ((?:"tidemill\.dev/[a-z-]+"(?:, )?)+)', CODE))
    constants = {name for group in found for name in re.findall(r"tidemill\.dev/[a-z-]+", group)}
    assert set(reference.ANNOTATIONS) <= constants
    documents = [*ROOT.glob("docs/**/*.md"), ROOT / "README.md"]
    # Decisions tell of the operator's own marks too.
    documents = [path for path in documents if path.parent.name != "decisions"]
    # The label that pods are selected by is no annotation.
    labels = {"tidemill.dev/pipeline"}
    # Nor is an address, as a runbook has it.
    named = set(re.findall(r"(?<!//)tidemill\.dev/(?!v1)[a-z-]+", "\n".join(path.read_text() for path in documents)))
    assert named - labels <= set(reference.ANNOTATIONS)
    read = set(re.findall(r"annotations[^\n]*\.get\(([A-Z]+)\)", CODE))
    values = {"ADOPT", "PAUSE", "REBALANCE", "RECREATE", "REPLAY", "ROTATE"}
    assert read <= values
