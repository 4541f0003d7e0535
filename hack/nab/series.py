"""Reads series of the Numenta Anomaly Benchmark from a folder: CSV files, and `windows.json` with the labels."""

from __future__ import annotations

import csv
import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path

LABELS = ("windows.json", "labels/combined_windows.json")


@dataclass(frozen=True)
class Series:
    """One recorded series.

    Attributes:
        name: The path below the folder, such as `realTweets/Twitter_volume_FB.csv`.
        times_ms: The time of each row in epoch ms, read as UTC.
        values: The value of each row.
        windows: The labelled anomalies as (first row, last row), both inclusive, in order.
    """

    name: str
    times_ms: tuple[int, ...]
    values: tuple[float, ...]
    windows: tuple[tuple[int, int], ...]


def load(folder: Path) -> list[Series]:
    """Return all labelled series of a folder, by name. The folder may have the layout of the benchmark's repository.

    Raises:
        FileNotFoundError: The labels, or a series that they name, are missing.
    """
    labels = next((folder / name for name in LABELS if (folder / name).is_file()), None)
    if labels is None:
        raise FileNotFoundError(f"{folder} has neither of {', '.join(LABELS)}; set NAB_DIR to a copy of the benchmark")
    below = folder / "data" if (folder / "data").is_dir() else folder
    return [_series(below / name, name, windows) for name, windows in sorted(json.loads(labels.read_text()).items())]


def _series(path: Path, name: str, windows: list[list[str]]) -> Series:
    with path.open(newline="") as file:
        rows = [(_ms(row["timestamp"]), float(row["value"])) for row in csv.DictReader(file)]
    times = tuple(at for at, _ in rows)
    return Series(name, times, tuple(value for _, value in rows), tuple(_rows(times, *window) for window in windows))


def _rows(times: tuple[int, ...], first: str, last: str) -> tuple[int, int]:
    """Return the first and last row of a window. If a time occurs twice (clock change), its first row counts."""
    return times.index(_ms(first)), times.index(_ms(last))


def _ms(text: str) -> int:
    return round(dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp() * 1000)
