"""`python -m tidemill_operator` is the operator in a cluster; the command line is `tidemill_operator.cli`."""

from __future__ import annotations

import sys

from tidemill_operator.cluster.serve import main

if __name__ == "__main__":
    sys.exit(main())
