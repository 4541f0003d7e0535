"""Exports images of a Docker engine as an archive, which a cluster with containerd can load."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from images.engine import BuildError, Engine, own_engine


@contextlib.contextmanager
def exported(names: Sequence[str]) -> Iterator[Path]:
    """Yield an archive of images, which exists while the block runs.

    The images come from the running Docker engine. If none runs, they come from the engine of hack/images.

    Raises:
        BuildError: The engine lacks an image.
    """
    with tempfile.TemporaryDirectory(prefix="tidemill-images-") as folder, contextlib.ExitStack() as stack:
        engine = Engine()
        if not engine.answers():
            engine = stack.enter_context(own_engine())
        missing = [name for name in names if not engine.has(name)]
        if missing:
            raise BuildError(
                f"{', '.join(missing)}: neither an archive nor an image of the Docker engine; build it first"
            )
        archive = Path(folder) / "images.tar"
        engine.save(names, archive)
        yield archive
