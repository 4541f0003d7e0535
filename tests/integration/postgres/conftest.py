"""A schema that each test makes, damages and drops."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.owned_schema import DOCUMENT, OwnedSchema
from tidemill_operator.laptop.servers import Servers


@pytest.fixture
def bench(servers: Servers, tmp_path: Path) -> Iterator[OwnedSchema]:
    made = OwnedSchema(servers, tmp_path, copy.deepcopy(DOCUMENT))
    yield made
    made.clean()
