"""Run the operator in a cluster: `python -m tidemill_operator`."""

from __future__ import annotations

import sys

from tidemill_operator.cluster.serve import main

if __name__ == "__main__":
    sys.exit(main())
