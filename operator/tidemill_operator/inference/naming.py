"""Makes names of fields and pipelines from the names of members and files."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from tidemill_contract.resource.name_rules import SYSTEM_COLUMNS
from tidemill_contract.resource.paths import Steps
from tidemill_contract.resource.rules import RESERVED_COLUMNS

_MAX_FIELD_LENGTH, _MAX_PIPELINE_LENGTH = 41, 40
_TRANSLITERATIONS = {
    "ä": "ae",
    "ö": "oe",
    "ü": "ue",
    "ß": "ss",
    "æ": "ae",
    "ø": "oe",
    "å": "aa",
    "%": " percent ",
    "&": " and ",
}
YAML_WORDS = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null", "~"))
"""YAML reads these words as strings only if they are quoted."""
# names reserved by Tidemill, and words not read as strings by YAML
_RESERVED_NAMES = YAML_WORDS.union(RESERVED_COLUMNS, SYSTEM_COLUMNS)


def field_names(paths: Sequence[Steps]) -> list[str]:
    """Return a unique name for the field at each path.

    A name is the last member of the path. If this member is short or not unique, the name is the whole path.
    """
    last = [_field_name(str(steps[-1])) for steps in paths]
    names: list[str] = []
    for steps, short in zip(paths, last, strict=True):
        long = _field_name("_".join(map(str, steps)))
        # `id`, `name` and other short names are clear only with the path, as in `customer_id`
        name = short if last.count(short) == 1 and len(short) > 2 and short != "name" else long
        names.append(_make_unique(name, names))
    return names


def pipeline_name(text: str) -> str:
    """Return the name of a pipeline, made from the name of a file or a topic."""
    name = _to_ascii(text).replace("_", "-")[:_MAX_PIPELINE_LENGTH].strip("-")
    return name or "events"


def _field_name(text: str) -> str:
    word = _to_ascii(re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", text)) or "field"
    word = word if word[0].isalpha() else f"field_{word}"
    word = f"{word}_value" if word in _RESERVED_NAMES else word
    return word[:_MAX_FIELD_LENGTH].rstrip("_")


def _to_ascii(text: str) -> str:
    lowered = "".join(_TRANSLITERATIONS.get(character, character) for character in text.lower())
    ascii_only = unicodedata.normalize("NFKD", lowered).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "_", ascii_only).strip("_")


def _make_unique(name: str, taken: Iterable[str]) -> str:
    chosen, copy = name, 2
    while chosen in taken:
        ending = f"_{copy}"
        chosen, copy = name[: _MAX_FIELD_LENGTH - len(ending)] + ending, copy + 1
    return chosen
