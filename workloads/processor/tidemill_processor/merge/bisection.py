"""Finds the events of a batch that Postgres refuses to store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import polars as pl

from tidemill_contract.events.decoder import Reason
from tidemill_processor import metrics
from tidemill_processor.batches.batch import INDEX, Batch

log = logging.getLogger(__name__)


def reject_unstorable(batch: Batch, error: Exception, storable: Callable[[Batch], bool]) -> Batch:
    """By bisection, find the events that Postgres refuses, and replace these events with dead letters.

    Raises:
        Exception: the given `error`, if Postgres refuses none of the events.
    """
    kept = batch.frame.clear()
    culprits: list[int] = []
    pieces: list[pl.DataFrame] = [batch.frame]
    while pieces:
        piece = pieces.pop()
        combined = kept.vstack(piece)
        if storable(replace(batch, frame=combined)):
            kept = combined
        elif piece.height == 1:
            culprits += piece[INDEX].to_list()
        else:
            half = piece.height // 2
            pieces += [piece[half:], piece[:half]]
    metrics.ROLLED_BACK.labels(reason="refused").inc()
    log.warning("postgres refuses %d event(s): %s", len(culprits), str(error).strip())
    if not culprits:
        raise error
    return batch.refuse(culprits, Reason.REFUSED_BY_DATABASE, str(error).strip())
