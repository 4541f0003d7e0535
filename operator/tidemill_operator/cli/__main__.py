"""Starts the `tidemill` command with `python -m tidemill_operator.cli`."""

from __future__ import annotations

import sys

from tidemill_operator.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
