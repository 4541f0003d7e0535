"""A pipeline's passwords and API keys as files that only their owner can read."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tidemill_contract.files import read_text
from tidemill_operator.actuators import credentials
from tidemill_operator.actuators.base import PipelineSecrets
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.processes.files import write_atomic

# The seconds for which replaced logins keep working. Processes read the login files for each new connection.
RETIRE_DELAY_SECONDS = 5.0


class FileSecrets:
    """A store of secrets as files in `<root>/<namespace>/<pipeline>/`."""

    def __init__(self, root: Path, *, retire_delay_seconds: float = RETIRE_DELAY_SECONDS) -> None:
        self._root, self._retire_delay = root, retire_delay_seconds

    def ensure(self, namespace: str, pipeline: str, *, writer: str, reader: str, rotate: str = "") -> PipelineSecrets:
        """Create missing logins and API keys, and start a requested rotation.

        Raises:
            TidemillError: a file cannot be written, or has invalid content.
        """
        return self._rewrite(
            namespace,
            pipeline,
            lambda files: credentials.files_to_ensure(files, writer=writer, reader=reader, rotate=rotate),
        )

    def switch(self, namespace: str, pipeline: str, *, now: dt.datetime) -> PipelineSecrets:
        """Activate the staged logins.

        Raises:
            TidemillError: a file cannot be written, or has invalid content.
        """
        return self._rewrite(namespace, pipeline, lambda files: credentials.files_to_switch(files, now))

    def retire(self, namespace: str, pipeline: str) -> PipelineSecrets:
        """Disable the replaced logins.

        Raises:
            TidemillError: a file cannot be written, or has invalid content.
        """
        return self._rewrite(namespace, pipeline, credentials.files_to_retire)

    def remove(self, namespace: str, pipeline: str) -> None:
        """Remove a pipeline's secrets."""
        shutil.rmtree(self._root / namespace / pipeline, ignore_errors=True)

    def _rewrite(
        self, namespace: str, pipeline: str, change: Callable[[Mapping[str, str]], dict[str, str]]
    ) -> PipelineSecrets:
        folder = self._root / namespace / pipeline
        with _translate_errors(f"secrets of {namespace}/{pipeline}", folder):
            for part in (self._root, self._root / namespace, folder):
                part.mkdir(mode=0o700, parents=True, exist_ok=True)
            files = {name: read_text(folder / name) for name in credentials.FILES if (folder / name).exists()}
            changed = change(files)
            for name, text in changed.items():
                write_atomic(folder / name, text, mode=0o600)
            return credentials.read_logins(
                {**files, **changed}, retire_delay_seconds=self._retire_delay, changed=len(changed)
            )


@contextmanager
def _translate_errors(what: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TidemillError(Reason.REFUSED, f"{what}: {error}", "make the folder writable") from error
    except TidemillError as error:
        raise TidemillError(error.reason, f"{folder}/{error.message}", error.remedy) from None
