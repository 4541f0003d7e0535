"""Collects the answer formats (`FORMAT`) from the modules of this package.

To add a format, add a module to this package.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache

from tidemill_api import formats
from tidemill_api.formats.base import Format
from tidemill_api.formats.json import FORMAT as JSON_FORMAT
from tidemill_contract.functions.registry import join_names

DEFAULT = JSON_FORMAT


def _load_formats() -> dict[str, Format]:
    modules = (importlib.import_module(f"{formats.__name__}.{module.name}") for module in _modules())
    registered = [module.FORMAT for module in modules if isinstance(getattr(module, "FORMAT", None), Format)]
    return {fmt.suffix: fmt for fmt in [DEFAULT, *registered]}


def _modules() -> list[pkgutil.ModuleInfo]:
    # the modules `registry` and `reference` define no format
    return [module for module in pkgutil.iter_modules(formats.__path__) if module.name not in ("registry", "reference")]


FORMATS = _load_formats()
"""Formats by suffix, with the default format JSON first."""
STREAMED = [fmt for fmt in FORMATS.values() if fmt.writer_factory is not None]
STREAMED_NAMES = join_names([fmt.name for fmt in STREAMED])
"""Names of the streamed formats for use in a sentence, such as `A, B and C`."""
_BY_MEDIA_TYPE = {media: fmt for fmt in FORMATS.values() for media in (fmt.media_type, *fmt.aliases)}


@lru_cache(maxsize=1024)
def negotiate(suffix: str | None, accept: str | None) -> Format:
    """Return the format of an answer. The path's suffix has priority over the Accept header. The default is JSON."""
    if suffix is not None:
        return FORMATS[suffix]
    ranked: list[tuple[float, Format]] = []
    for part in (accept or "").split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((p.removeprefix("q=") for p in parameters if p.startswith("q=")), "1")
        if media in _BY_MEDIA_TYPE:
            try:
                ranked.append((float(quality), _BY_MEDIA_TYPE[media]))
            except ValueError:
                continue
    best = max(ranked, key=lambda entry: entry[0], default=(0.0, DEFAULT))
    return best[1] if best[0] > 0 else DEFAULT
