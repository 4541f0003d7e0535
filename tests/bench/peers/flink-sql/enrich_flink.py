"""The function `page` for Flink SQL."""

from __future__ import annotations

import enrich
from pyflink.table.udf import udf

page = udf(enrich.page, result_type="STRING")
