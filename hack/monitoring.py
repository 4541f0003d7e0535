"""Prints docs/monitoring.md: what processes tell Prometheus, from the modules that declare it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase

INTRO = """\
# Monitoring

Every process answers `/metrics` for Prometheus. It tells the families below that are its own, and what Python and the
process take (`python_…`, `process_…`). (The functions of a pipeline's `metrics` are [another page](metrics.md).)

- `tidemill up --targets-file targets.json` writes where its processes are, for
  [config/prometheus](../config/prometheus/prometheus.yaml); in a cluster the chart makes a ServiceMonitor and a
  PodMonitor.
- Targets have the labels `job="tidemill"`, `namespace`, `component` (`ingest`, `processor`, `api`, `operator`) and,
  where a process serves one pipeline, `pipeline`. Scrape configurations of your own have to set them, and to keep
  labels that figures bring (`honor_labels: true`), as some are about several pipelines.
- Where the labels are known before, a counter is there at 0, so that `increase()` sees the first event.
- [Alerts](runbooks/README.md) and the chart's dashboards ask for this job only. The same
  [rules](../charts/tidemill/files/alerts.yaml) serve a cluster and Docker Compose.
- `tidemill_pipeline_…` come from the operator, or from `tidemill up`: they go on when a pipeline's own processes do
  not.
"""
WORKLOADS = {
    "Every workload": "tidemill_chassis.metrics",
    "Ingest and API": "tidemill_chassis.web.metrics",
    "Ingest": "tidemill_ingest.metrics",
    "Processor": "tidemill_processor.metrics",
    "API": "tidemill_api.metrics",
}
OPERATOR = (
    "tidemill_operator.observer.condition_metrics",
    "tidemill_operator.cluster.telemetry",
    "tidemill_operator.observer.metrics",
)


def sections() -> Iterator[tuple[str, list[ModuleType]]]:
    """Titles, and the modules that declare what is told there."""
    for title, module in WORKLOADS.items():
        yield title, [importlib.import_module(module)]
    yield "Operator", [importlib.import_module(module) for module in OPERATOR]


def row(metric: MetricWrapperBase) -> str:
    """A family's line of the table."""
    name = metric._name + ("_total" if isinstance(metric, Counter) else "")
    labels = ", ".join(f"`{label}`" for label in metric._labelnames)
    return f"| `{name}` | {labels} | {metric._documentation} |"


def main() -> None:
    """Print the page."""
    print(INTRO)
    parts = []
    for title, modules in sections():
        metrics = [value for module in modules for value in vars(module).values()]
        rows = [row(value) for value in metrics if isinstance(value, MetricWrapperBase)]
        parts.append("\n".join([f"## {title}\n", "| Metric | Labels | Meaning |", "|---|---|---|", *rows]))
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
