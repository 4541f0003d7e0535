"""Tests of the reference page: it is generated from the model, and the expression that it shows is valid."""

from __future__ import annotations

from pathlib import Path

from tidemill_contract.expressions.compiler import check_type
from tidemill_operator.resource import reference

PAGE = Path(__file__).parents[4] / "docs" / "reference" / "pipeline.md"


def test_the_page_equals_the_output_of_the_generator() -> None:
    assert reference.render() == PAGE.read_text(), (
        "run: python -m tidemill_operator.resource.reference > docs/reference/pipeline.md"
    )


def test_the_shown_comparison_is_a_valid_expression() -> None:
    text = "ts >= '2013-01-31T12:00:00Z'"
    assert f"`{text}`" in PAGE.read_text()
    assert check_type(text, {"ts": "timestamp"}) == "boolean"
