"""The reference page is what the model says, and the expressions it shows are understood."""

from __future__ import annotations

from pathlib import Path

from tidemill_contract.expressions.compiler import check
from tidemill_operator.resource import reference

PAGE = Path(__file__).parents[4] / "docs" / "reference" / "pipeline.md"


def test_the_page_is_what_the_generator_prints() -> None:
    assert reference.render() == PAGE.read_text(), (
        "run: python -m tidemill_operator.resource.reference > docs/reference/pipeline.md"
    )


def test_the_comparison_it_shows_works() -> None:
    text = "ts >= '2013-01-31T12:00:00Z'"
    assert f"`{text}`" in PAGE.read_text()
    assert check(text, {"ts": "timestamp"}) == "boolean"
