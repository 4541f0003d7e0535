"""Fixture of a pipeline's schema on a real Postgres that one test creates and damages."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.owned_schema import DOCUMENT, OwnedSchema
from tidemill_operator.laptop.servers import Servers


@pytest.fixture
def bench(servers: Servers, tmp_path: Path) -> Iterator[OwnedSchema]:
    schema = OwnedSchema(servers, tmp_path, copy.deepcopy(DOCUMENT))
    yield schema
    schema.clean()
