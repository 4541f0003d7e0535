"""Export the figures of pipelines to Prometheus. Unknown figures are not exported."""

from __future__ import annotations

from contextlib import suppress

from prometheus_client import Gauge

from tidemill_operator.keys import Key
from tidemill_operator.observer.figures import Figures

_LABELS = ("namespace", "pipeline")

LAG_EVENTS = Gauge("tidemill_pipeline_lag_events", "Events in the source topic that are not counted yet.", _LABELS)
LAG_SECONDS = Gauge(
    "tidemill_pipeline_lag_seconds", "Time since the arrival of the oldest event that is not counted yet.", _LABELS
)
STAGE_LAG_EVENTS = Gauge(
    "tidemill_pipeline_stage_lag_events",
    "Events in the source topic that the Python stage has not written yet; no series without a stage.",
    _LABELS,
)
STAGE_LAG_SECONDS = Gauge(
    "tidemill_pipeline_stage_lag_seconds",
    "Time since the arrival of the oldest event that the Python stage has not written yet.",
    _LABELS,
)
FRESHNESS_SECONDS = Gauge(
    "tidemill_pipeline_freshness_seconds",
    "Time from an event's arrival to the commit that counts it; no series while no events arrive.",
    _LABELS,
)
WATERMARK_AGE_SECONDS = Gauge(
    "tidemill_pipeline_watermark_age_seconds", "How far the watermark is behind the wall clock.", _LABELS
)
AVAILABLE = Gauge(
    "tidemill_pipeline_figures_available", "1 if lag, freshness and age of the watermark are known, else 0.", _LABELS
)


def export(key: Key, figures: Figures | None) -> None:
    """Export a pipeline's figures. None removes the series."""
    _set(AVAILABLE, key, float(figures is not None))
    has_stage = figures is not None and figures.stage_lag is not None
    _set(LAG_EVENTS, key, figures.lag if figures else None)
    _set(LAG_SECONDS, key, figures.lag_seconds if figures else None)
    _set(STAGE_LAG_EVENTS, key, figures.stage_lag if figures else None)
    _set(STAGE_LAG_SECONDS, key, figures.stage_lag_seconds if figures and has_stage else None)
    _set(FRESHNESS_SECONDS, key, figures.freshness_seconds if figures else None)
    _set(WATERMARK_AGE_SECONDS, key, figures.watermark_age_seconds if figures else None)


def remove(key: Key) -> None:
    """Remove a deleted pipeline's figures."""
    for gauge in (
        AVAILABLE,
        LAG_EVENTS,
        LAG_SECONDS,
        STAGE_LAG_EVENTS,
        STAGE_LAG_SECONDS,
        FRESHNESS_SECONDS,
        WATERMARK_AGE_SECONDS,
    ):
        _set(gauge, key, None)


def _set(gauge: Gauge, key: Key, value: float | None) -> None:
    if value is not None:
        gauge.labels(key.namespace, key.name).set(value)
        return
    with suppress(KeyError):
        gauge.remove(key.namespace, key.name)
