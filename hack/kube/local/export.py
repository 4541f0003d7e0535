"""Exports images of a Docker engine as an archive, for a cluster that only has containerd."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from images.engine import BuildError, Engine, own_engine


@contextlib.contextmanager
def exported(names: Sequence[str]) -> Iterator[Path]:
    """An archive with images of the engine that runs, else of the one that builds Tidemill's images.

    Raises:
        BuildError: an image is in neither.
    """
    with tempfile.TemporaryDirectory(prefix="tidemill-images-") as folder, contextlib.ExitStack() as stack:
        engine = Engine()
        if not engine.answers():
            engine = stack.enter_context(own_engine())
        missing = [name for name in names if not engine.has(name)]
        if missing:
            raise BuildError(f"{', '.join(missing)}: neither an archive nor an image of the Docker engine")
        archive = Path(folder) / "images.tar"
        engine.save(names, archive)
        yield archive
