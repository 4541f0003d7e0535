"""Keeps the rows of lookups up to date, joins the rows to batches, and reports the lookups' state."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from tidemill_chassis.health import Dependency
from tidemill_contract.resource.lookups.model import LookupSpec
from tidemill_contract.runtime import PipelineConfig, WorkloadSettings
from tidemill_contract.tables import failures
from tidemill_processor import metrics
from tidemill_processor.lookups.files import FileSource
from tidemill_processor.lookups.postgres import PostgresSource
from tidemill_processor.lookups.table import LookupFault, Table
from tidemill_processor.lookups.topic import TopicLookup

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
"""The maximum wait in seconds after a failed load."""
STALE_REFRESHES = 3
"""The rows of a lookup count as outdated after this many refresh intervals."""
_MIN_STALE_SECONDS = 5.0
_MAX_DETAIL = 500
SLOW_LOAD_SECONDS = 30.0
"""A first load that takes more than this many seconds is reported."""


class PolledSource(Protocol):
    """A source that is read completely at each refresh."""

    source_name: str
    refresh_seconds: float

    def load(self) -> Table | None:
        """Return the rows, or None if the rows have not changed."""


class PolledLookup:
    """Reads rows from a file or from Postgres at regular intervals."""

    def __init__(self, name: str, source: PolledSource) -> None:
        self._name, self._source = name, source
        self.table: Table | None = None
        self.confirmed_at = 0.0
        self.error = self.unreadable = ""
        self.stale_seconds = max(STALE_REFRESHES * source.refresh_seconds, _MIN_STALE_SECONDS)

    @property
    def source_name(self) -> str:
        """The name of the server or file, for logs and errors."""
        return self._source.source_name

    def run(self, stopping: threading.Event) -> None:
        """Read the rows until stopped."""
        while not stopping.is_set():
            began, interval = time.monotonic(), self._source.refresh_seconds
            if not self._load():
                interval = min(interval, RETRY_SECONDS)
            stopping.wait(max(0.1, interval - (time.monotonic() - began)))

    def _load(self) -> bool:
        # Take the time before the load, because rows may change during the load.
        started_at = time.monotonic()
        try:
            table = self._source.load()
        except LookupFault as fault:
            if str(fault) != self.error:
                log.warning("lookup %s: %s: %s", self._name, self.source_name, fault)
            self.error = str(fault)
            return False
        if table is not None:
            self.table = table
        self.confirmed_at, self.error = started_at, ""
        return True


@dataclass(frozen=True)
class _Lookup:
    spec: LookupSpec
    source: PolledLookup | TopicLookup


class Lookups:
    """All lookups of one processor."""

    def __init__(self, config: PipelineConfig, settings: WorkloadSettings) -> None:
        """Prepare the lookups. Reading begins with `start`."""
        self._stopping = threading.Event()
        self._began = time.monotonic()
        self._lookups = tuple(_Lookup(spec, _source(config, spec, settings)) for spec in config.spec.lookups or ())
        for lookup in self._lookups:
            name, source = lookup.spec.name, lookup.source
            metrics.watch_lookup(name, rows=_rows_of(source), age=_age_of(source), stale=_stale_of(source))

    def start(self) -> None:
        """Start a thread for each lookup."""
        for lookup in self._lookups:
            name = f"lookup_{lookup.spec.name}"
            threading.Thread(target=self._run, args=(lookup,), name=name, daemon=True).start()

    def stop(self) -> None:
        """End the threads of the lookups."""
        self._stopping.set()

    def _run(self, lookup: _Lookup) -> None:
        while not self._stopping.is_set():
            try:
                lookup.source.run(self._stopping)
            except Exception as error:  # an ended thread would never update the lookup's rows again
                log.exception("lookup %s", lookup.spec.name)
                lookup.source.error = f"{type(error).__name__}: {error}"
                self._stopping.wait(RETRY_SECONDS)

    @property
    def ready(self) -> bool:
        """Whether all lookups were read at least once."""
        return all(lookup.source.table is not None for lookup in self._lookups)

    def join(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Add the fields of all lookups to each event, from the current rows.

        Raises:
            RuntimeError: a lookup has not been read yet.
        """
        for lookup in self._lookups:
            table = lookup.source.table
            if table is None:
                raise RuntimeError(f"the lookup {lookup.spec.name} was not read yet")
            frame = table.join(frame, lookup.spec.on)
        return frame

    def dependencies(self) -> list[Dependency]:
        """Return the state of each lookup for /health."""
        return [_dependency(lookup.spec.name, lookup.source) for lookup in self._lookups]

    def problems(self) -> dict[str, dict[str, str] | None]:
        """Return the problems of each lookup, by name. Before a lookup is read once, its value is None."""
        return {lookup.spec.name: _problems(lookup.source, time.monotonic() - self._began) for lookup in self._lookups}

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return the number of rows and the age of the rows (seconds) for each lookup, by name."""
        return {
            lookup.spec.name: {
                "rows": None if (table := lookup.source.table) is None else table.height,
                "age_seconds": None if table is None else round(_age_of(lookup.source)(), 1),
            }
            for lookup in self._lookups
        }


def lookups_of(config: PipelineConfig, settings: WorkloadSettings) -> Lookups | None:
    """Return the lookups of a pipeline, or None without lookups."""
    return Lookups(config, settings) if config.spec.lookups else None


def _source(config: PipelineConfig, spec: LookupSpec, settings: WorkloadSettings) -> PolledLookup | TopicLookup:
    folder = settings.lookup_dirs.get(spec.name, Path())
    match spec.source.kind:
        case "topic":
            return TopicLookup(config, spec, settings)
        case "configMap":
            return PolledLookup(spec.name, FileSource(config.spec, spec, folder))
    return PolledLookup(spec.name, PostgresSource(config.spec, spec, folder))


def _dependency(name: str, source: PolledLookup | TopicLookup) -> Dependency:
    if source.table is None:
        detail = (
            f"{source.source_name}: {source.error or 'is being read'}; no event is counted before the lookup is read"
        )
        return Dependency(f"lookup {name}", False, True, detail)
    age = _age_of(source)()
    if age > source.stale_seconds:
        why = source.error or "no answer"
        detail = f"{source.source_name}: {why}; outdated: events get rows that are {age:.0f} s old"
        return Dependency(f"lookup {name}", False, False, detail)
    why = source.error or source.unreadable
    return Dependency(f"lookup {name}", not source.unreadable, False, f"{source.source_name}: {why}" if why else "")


def _problems(source: PolledLookup | TopicLookup, seconds: float) -> dict[str, str] | None:
    state = _dependency("", source)
    if state.required and not source.error and seconds < SLOW_LOAD_SECONDS:
        return None
    duty = failures.UNREAD_LOOKUP if state.required else failures.STALE_LOOKUP
    return {} if state.ok else {duty: state.detail[:_MAX_DETAIL]}


def _stale_of(source: PolledLookup | TopicLookup) -> Callable[[], float]:
    return lambda: float(not _dependency("", source).ok)


def _age_of(source: PolledLookup | TopicLookup) -> Callable[[], float]:
    return lambda: time.monotonic() - source.confirmed_at if source.table is not None else 0.0


def _rows_of(source: PolledLookup | TopicLookup) -> Callable[[], float]:
    return lambda: 0 if (table := source.table) is None else table.height
