"""Prints docs/monitoring.md, which lists the metrics of the modules that declare them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase

INTRO = """\
# Monitoring

Every process serves `/metrics` for Prometheus. Each process exports the metrics listed below, and metrics of Python and
of the process (`python_…`, `process_…`). The functions of a pipeline's `metrics` are on [another page](metrics.md).

- `tidemill up --targets-file targets.json` writes the addresses of its processes, for
  [config/prometheus](../config/prometheus/prometheus.yaml). In a cluster, the chart creates a ServiceMonitor and a
  PodMonitor.
- Targets have the labels `job="tidemill"`, `namespace`, `component` (`ingest`, `mqtt`, `processor`, `stage`, `api`,
  `operator`) and, if a process serves one pipeline, `pipeline`. Your own scrape configuration has to set these
  labels, and to keep labels of the metrics themselves (`honor_labels: true`), because some metrics have labels of
  several pipelines.
- A counter with labels that are known in advance starts at 0, so that `increase()` includes the first event.
- [Alerts](runbooks/README.md) and the chart's [Grafana dashboards](../charts/tidemill/dashboards) only select the job
  `tidemill`. The same [rules](../charts/tidemill/files/alerts.yaml) are used in a cluster and with Docker Compose.
- The operator, or `tidemill up`, exports `tidemill_pipeline_…`, so these metrics remain when a pipeline's processes
  end.
"""
WORKLOADS = {
    "Every workload": "tidemill_chassis.metrics",
    "Ingest and API": "tidemill_chassis.web.metrics",
    "Ingest": "tidemill_ingest.metrics",
    "MQTT bridge": "tidemill_ingest.mqtt.metrics",
    "Processor": "tidemill_processor.metrics",
    "Python stage": "tidemill_processor.stage.metrics",
    "API": "tidemill_api.metrics",
}
OPERATOR = (
    "tidemill_operator.observer.condition_metrics",
    "tidemill_operator.cluster.telemetry",
    "tidemill_operator.observer.metrics",
)


def sections() -> Iterator[tuple[str, list[ModuleType]]]:
    """Yield each section's title, and the modules that declare its metrics."""
    for title, module in WORKLOADS.items():
        yield title, [importlib.import_module(module)]
    yield "Operator", [importlib.import_module(module) for module in OPERATOR]


def row(metric: MetricWrapperBase) -> str:
    """Return a metric's line of the table."""
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
