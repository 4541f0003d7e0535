"""Options that several commands have."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_data_dir(parser: argparse.ArgumentParser, what: str = "data folder of the running `up`") -> None:
    """Add the option --data-dir, whose help text is `what`."""
    parser.add_argument(
        "--data-dir", type=Path, default=Path(".tidemill"), metavar="DIR", help=f"{what}; default: .tidemill"
    )


def add_output(parser: argparse.ArgumentParser, *forms: str) -> None:
    """Add the option --output, whose default is the first value in `forms`."""
    parser.add_argument("--output", choices=forms, default=forms[0], help=f"form of the output; default: {forms[0]}")
