"""Read the decimals in events as exact scaled integers, without rounding."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Context, Decimal, Inexact, InvalidOperation
from functools import partial
from itertools import repeat
from math import trunc
from typing import Any

import msgspec

from tidemill_contract.decimals import DECIMAL, MOST_DIGITS, scaled_text
from tidemill_contract.events.details import shown
from tidemill_contract.events.shapes import Shape
from tidemill_contract.events.verdicts import InvalidEvent, Reason
from tidemill_contract.resource.source import FieldSpec

# msgspec also accepts decimal texts with underscores (`1_000`) or with digits of other scripts.
_OTHER_TEXT = rb'"[\s0-9eE+.\-]*(?:_|\\|[\x80-\xff])'
_UNDERSCORE = re.compile(rb'_[\s0-9eE+.\-_]*"')
_ESCAPED_NAME = re.compile(rb'\\[^":,]*"\s*:')


class DecimalFormat:
    """Checks values against a field's precision and scale, and converts them to scaled integers."""

    def __init__(self, precision: int, scale: int) -> None:
        self._precision, self._scale = precision, scale
        self.limit: int = 10**precision
        self.name = f"{DECIMAL}({precision},{scale})"
        self._unit, self._shift = Decimal((0, (1,), -scale)), Decimal(scale)
        # The trap `Inexact` raises an error instead of rounding a value.
        self._exact = Context(prec=precision, traps=[Inexact, InvalidOperation])

    @classmethod
    def of(cls, field: FieldSpec) -> DecimalFormat | None:
        """Return the decimal format of a field, or None if the field is not a decimal."""
        if field.type != DECIMAL or field.scale is None:
            return None
        return cls(MOST_DIGITS if field.precision is None else field.precision, field.scale)

    def all_scaled(self, values: Sequence[Any]) -> list[Any]:
        """Convert decimals to scaled integers, or raise ArithmeticError or ValueError for an invalid decimal."""
        if type(None) in set(map(type, values)):
            return [None if value is None else self._scaled(value) for value in values]
        exact = map(self._exact.quantize, values, repeat(self._unit))
        return list(map(trunc, map(self._exact.scaleb, exact, repeat(self._shift))))

    def _scaled(self, value: Decimal) -> int:
        return trunc(self._exact.quantize(value, self._unit).scaleb(self._shift, self._exact))

    def scaled(self, name: str, value: Decimal) -> int:
        """Convert a decimal to a scaled integer, or raise InvalidEvent."""
        try:
            return self._scaled(value)
        except (ArithmeticError, ValueError):
            raise self._refused(name, value) from None

    def _refused(self, name: str, value: Decimal) -> InvalidEvent:
        came = shown(str(value).encode())
        if not value.is_finite():
            return InvalidEvent(Reason.MISTYPED, name, f"{name}: expected {self.name}, got {came}; send null")
        before = self._precision - self._scale
        if value.adjusted() >= before and value:
            detail = f"{name}: {came} does not fit {self.name}, at most {before} digits before the point"
            return InvalidEvent(Reason.OUT_OF_RANGE, name, f"{detail}; send a smaller number")
        detail = f"{name}: {came} has more than {self._scale} digits after the point"
        remedy = "round the number before sending, or give the field a larger scale"
        return InvalidEvent(Reason.MISTYPED, name, f"{detail}; {remedy}")


class Decimals:
    """Converts the decimal fields in one pipeline's events to scaled integers.

    `names` are the decimal fields in the event. `part` is true if each event is an element of an array.
    """

    def __init__(self, fields: Sequence[FieldSpec], first: Mapping[str, str], *, part: bool) -> None:
        own = [field for field in fields if field.origin == "value" and field.name not in first]
        formats = {field.name: DecimalFormat.of(field) for field in own}
        self._formats = {name: written for name, written in formats.items() if written is not None}
        self.names = tuple(self._formats)
        ends = {field.steps[-1] for field in own if field.name in self._formats}
        names = {end for end in ends if isinstance(end, str)}
        self._other = _other_texts(names, items=part or names != ends)
        self.shown: Mapping[str, Callable[[int], str]] = {
            field.name: partial(scaled_text, scale=field.scale or 0) for field in fields if field.type == DECIMAL
        }

    def may_be_other(self, raw: bytes) -> bool:
        """Return whether the bytes may contain a text such as `"1_000"`. Python accepts this invalid decimal."""
        if not self._formats:
            return False
        escapes = b"\\" in raw
        # Most events pass a fast check, and need no search with a regular expression.
        if not escapes and raw.isascii() and not (b"_" in raw and _UNDERSCORE.search(raw)):
            return False
        return bool(self._other.search(raw) or (escapes and _ESCAPED_NAME.search(raw)))

    def scale_all(self, shape: Shape, events: Sequence[Any]) -> None:
        """Replace the decimals in several events with scaled integers, or raise ArithmeticError or ValueError."""
        for name, written in self._formats.items():
            shape.put(events, name, written.all_scaled(shape.values(events, name)))

    def scale(self, shape: Shape, event: Any) -> None:
        """Replace the decimals in one event with scaled integers, or raise InvalidEvent."""
        for name, written in self._formats.items():
            (value,) = shape.values((event,), name)
            if value is not None:
                shape.put((event,), name, (written.scaled(name, value),))


def _other_texts(names: set[str], *, items: bool) -> re.Pattern[bytes]:
    """Return a pattern for JSON members with a name in `names` and a value such as `"1_000"`."""
    patterns = [re.escape(msgspec.json.encode(name)) + rb"\s*:\s*" + _OTHER_TEXT for name in sorted(names)]
    if items:
        patterns.append(rb"[\[,]\s*" + _OTHER_TEXT + rb'[^"]*"\s*[,\]]')
    return re.compile(b"|".join(patterns))
