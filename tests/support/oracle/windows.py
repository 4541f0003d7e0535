"""Kinds of windows: how they are drawn, and how the model cuts time by them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from tidemill_contract import duration

Window = Mapping[str, Any]
parse_ms = lru_cache(duration.parse_ms)
_STEP_MS = 1_000


def _tumbling(rnd: random.Random) -> dict[str, Any]:
    return {"size": rnd.choice(["10s", "1m", "5m", "1h"])}


def _hopping(rnd: random.Random) -> dict[str, Any]:
    hop = rnd.choice([10, 30, 60])
    return {"size": f"{hop * rnd.choice([2, 3, 5])}s", "hop": f"{hop}s"}


def _session(rnd: random.Random) -> dict[str, Any]:
    gap = rnd.choice([2, 10, 45])
    longest = {"maxLength": f"{gap * rnd.choice([2, 7])}s"} if rnd.random() < 0.6 else {}
    return {"gap": f"{gap}s", **longest}


DRAWN: Mapping[str, Callable[[random.Random], dict[str, Any]]] = {
    "tumbling": _tumbling,
    "hopping": _hopping,
    "session": _session,
}


def draw_window(rnd: random.Random) -> dict[str, Any]:
    """A window of any kind."""
    grace = rnd.choice(["0s", "0s", "5s", "1m"])
    kind = rnd.choice(list(DRAWN))
    return {"type": kind, **DRAWN[kind](rnd), "grace": grace}


def size_of(window: Window) -> int:
    """Length of a window in milliseconds, of a session the most."""
    return parse_ms(window["size"] if "size" in window else window.get("maxLength", "1d"))


def pane_of(window: Window) -> int:
    """Milliseconds between the starts of windows; of sessions how finely they close."""
    match window["type"]:
        case "session":
            return _STEP_MS
        case "hopping":
            return parse_ms(window["hop"])
    return size_of(window)
