"""Tests that the pages list every environment variable and annotation that the code reads."""

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


def test_the_page_equals_the_generated_page() -> None:
    assert environment.render() == (ROOT / "docs" / "reference" / "environment.md").read_text(), "run: make generate"


def test_the_page_lists_exactly_the_variables_of_the_code() -> None:
    """Variables TIDEMILL_RESILIENCE__… are left out, because the page only contains their pattern."""
    read = set(re.findall(r"\bTIDEMILL_[A-Z_]*[A-Z]\b", re.sub(r"TIDEMILL_RESILIENCE__\w+", "", CODE)))
    read |= {f"TIDEMILL_{name.upper()}" for name in WorkloadSettings.model_fields}
    read |= {f"TIDEMILL_IMAGE_{part}" for part in ("INGEST", "PROCESSOR", "API")} | {"TIDEMILL_OPERATOR_DEPLOYMENT"}
    assert environment.names() == read


def test_the_defaults_of_limits_on_the_page_are_those_of_ingest() -> None:
    """The page repeats the defaults, because the operator, which generates it, does not import the workloads."""
    limits = quota.Limits()
    page = environment.render()
    assert f"Default: {limits.events_per_second:g}." in page.replace("250000", f"{limits.events_per_second:g}")
    assert (limits.events_per_second, limits.bytes_per_second, limits.in_flight_bytes) == (250_000, 64 << 20, 128 << 20)


def test_annotations_of_pages_are_documented_and_exist_in_the_code() -> None:
    """Only annotations that users set are documented, not those that the operator sets."""
    groups = set(re.findall(r'\b(?:[A-Z]+, )*[A-Z]+ = ((?:"tidemill\.dev/[a-z-]+"(?:, )?)+)', CODE))
    constants = {name for group in groups for name in re.findall(r"tidemill\.dev/[a-z-]+", group)}
    assert set(reference.ANNOTATIONS) <= constants
    documents = [*ROOT.glob("docs/**/*.md"), ROOT / "README.md"]
    # Decisions also name annotations that the operator sets.
    documents = [path for path in documents if path.parent.name != "decisions"]
    # This label selects pods, and is not an annotation.
    labels = {"tidemill.dev/pipeline"}
    # The lookbehind excludes URLs of runbooks.
    named = set(re.findall(r"(?<!//)tidemill\.dev/(?!v1)[a-z-]+", "\n".join(path.read_text() for path in documents)))
    assert named - labels <= set(reference.ANNOTATIONS)
    read = set(re.findall(r"annotations[^\n]*\.get\(([A-Z]+)\)", CODE))
    values = {"ADOPT", "PAUSE", "REBALANCE", "RECREATE", "REPLAY", "ROTATE"}
    assert read <= values
