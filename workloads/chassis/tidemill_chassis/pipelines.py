"""Reads the config files of pipelines, and detects new, changed and deleted files."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from tidemill_contract.files import read_bytes
from tidemill_contract.runtime import PipelineConfig

log = logging.getLogger(__name__)

_SUFFIX = ".json"
_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Entry:
    stamp: _Stamp
    config: PipelineConfig | None
    fault: str | None


class PipelineDirectory:
    """The pipeline configs in a directory, one file `<name>.json` for each pipeline.

    Callers get the same PipelineConfig object until the file changes. While a file is invalid, its last valid config
    stays in use.
    """

    def __init__(
        self, config_dir: Path, poll_seconds: float = 1.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._dir, self._poll_seconds, self._clock = Path(config_dir), poll_seconds, clock
        self._lock = threading.Lock()
        self._scanned_at: float | None = None
        self._entries: dict[str, _Entry] = {}
        self._dir_fault: str | None = None
        self._configs: dict[str, PipelineConfig] = {}
        self._faults: dict[str, str] = {}

    def get(self, name: str) -> PipelineConfig | None:
        """Return the config of a pipeline, or None if there is no such pipeline."""
        self._refresh()
        return self._configs.get(name)

    def all(self) -> tuple[PipelineConfig, ...]:
        """Return the configs of all pipelines, sorted by name."""
        self._refresh()
        configs = self._configs
        return tuple(configs[name] for name in sorted(configs))

    @property
    def faults(self) -> dict[str, str]:
        """The errors of config files, by pipeline name. The key `.` is for an error of the directory."""
        self._refresh()
        return dict(self._faults)

    def _refresh(self) -> None:
        now = self._clock()
        if self._scanned_at is not None and now - self._scanned_at < self._poll_seconds:
            return
        with self._lock:
            if self._scanned_at is not None and now - self._scanned_at < self._poll_seconds:
                return
            self._scan()
            self._scanned_at = now

    def _scan(self) -> None:
        try:
            stamps = dict(self._stamps())
            # The listing of a directory may miss a file during its replacement. The files of known pipelines are
            # therefore also looked up by name.
            for name in self._entries.keys() - stamps.keys():
                with contextlib.suppress(FileNotFoundError):
                    stamps[name] = _stamp((self._dir / f"{name}{_SUFFIX}").stat())
            fault = None
        except OSError as error:
            fault = f"{self._dir} cannot be read: {error.strerror}"
        if fault is not None:
            if fault != self._dir_fault:
                log.warning("%s; the earlier pipelines stay in use", fault)
            self._dir_fault = fault
            self._faults = {**self._faults, ".": fault}
            return
        previous = self._entries
        if self._dir_fault is None and {name: entry.stamp for name, entry in previous.items()} == stamps:
            return
        self._dir_fault = None
        entries = {name: self._entry(name, stamp, previous.get(name)) for name, stamp in stamps.items()}
        for name in previous.keys() - entries.keys():
            log.info("the config of pipeline %s was removed", name)
        self._entries = entries
        # Readers hold no lock, so create new dictionaries instead of changing the old ones.
        self._configs = {name: entry.config for name, entry in entries.items() if entry.config is not None}
        self._faults = {name: entry.fault for name, entry in entries.items() if entry.fault is not None}

    def _stamps(self) -> list[tuple[str, _Stamp]]:
        stamps = []
        with os.scandir(self._dir) as listing:
            for file in listing:
                if file.name.startswith(".") or not file.name.endswith(_SUFFIX):
                    continue
                with contextlib.suppress(FileNotFoundError):  # the file was removed after it was listed
                    stamps.append((file.name.removesuffix(_SUFFIX), _stamp(file.stat())))
        return stamps

    def _entry(self, name: str, stamp: _Stamp, previous: _Entry | None) -> _Entry:
        if previous is not None and previous.stamp == stamp:
            return previous
        last = previous.config if previous is not None else None
        try:
            config = PipelineConfig.from_json(read_bytes(self._dir / f"{name}{_SUFFIX}"))
            if config.name != name:
                raise ValueError(f"holds the pipeline {config.name!r}; name the file like its pipeline")
        except (OSError, ValueError) as error:
            fault = _first_line(error)
            log.warning("%s%s: %s%s", name, _SUFFIX, fault, "; the last valid config stays in use" if last else "")
            return _Entry(stamp, last, fault)
        log.info("pipeline %s, generation %d", name, config.generation)
        return _Entry(stamp, config, None)


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}" if where else first["msg"]
    return str(error).partition("\n")[0]
