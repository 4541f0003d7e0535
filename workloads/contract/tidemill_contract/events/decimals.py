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

from tidemill_contract.decimals import DECIMAL, MAX_DIGITS, scaled_text
from tidemill_contract.events.event_errors import show_bytes
from tidemill_contract.events.invalid_events import InvalidEvent, Reason
from tidemill_contract.events.shapes import Shape
from tidemill_contract.resource.source import FieldSpec

# msgspec also accepts decimal texts with underscores (`1_000`) or with digits of other scripts.
_LENIENT_TEXT = rb'"[\s0-9eE+.\-]*(?:_|\\|[\x80-\xff])'
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
        return cls(MAX_DIGITS if field.precision is None else field.precision, field.scale)

    def scale_values(self, values: Sequence[Any]) -> list[Any]:
        """Convert decimals to scaled integers, or raise ArithmeticError or ValueError for an invalid decimal."""
        if type(None) in set(map(type, values)):
            return [None if value is None else self._to_scaled(value) for value in values]
        exact = map(self._exact.quantize, values, repeat(self._unit))
        return list(map(trunc, map(self._exact.scaleb, exact, repeat(self._shift))))

    def _to_scaled(self, value: Decimal) -> int:
        return trunc(self._exact.quantize(value, self._unit).scaleb(self._shift, self._exact))

    def scale_value(self, name: str, value: Decimal) -> int:
        """Convert a decimal to a scaled integer, or raise InvalidEvent."""
        try:
            return self._to_scaled(value)
        except (ArithmeticError, ValueError):
            raise self._decimal_error(name, value) from None

    def _decimal_error(self, name: str, value: Decimal) -> InvalidEvent:
        received = show_bytes(str(value).encode())
        if not value.is_finite():
            return InvalidEvent(Reason.MISTYPED, name, f"{name}: expected {self.name}, got {received}; send null")
        digits_before = self._precision - self._scale
        if value.adjusted() >= digits_before and value:
            detail = f"{name}: {received} does not fit {self.name}, at most {digits_before} digits before the point"
            return InvalidEvent(Reason.OUT_OF_RANGE, name, f"{detail}; send a smaller number")
        detail = f"{name}: {received} has more than {self._scale} digits after the point"
        remedy = "round the number before sending, or give the field a larger scale"
        return InvalidEvent(Reason.MISTYPED, name, f"{detail}; {remedy}")


class Decimals:
    """Converts the decimal fields in one pipeline's events to scaled integers.

    `names` are the decimal fields in the event. `is_part` is true if each event is an element of an array.
    """

    def __init__(self, fields: Sequence[FieldSpec], duplicate_of: Mapping[str, str], *, is_part: bool) -> None:
        value_fields = [field for field in fields if field.origin == "value" and field.name not in duplicate_of]
        formats = {field.name: DecimalFormat.of(field) for field in value_fields}
        self._formats = {name: each for name, each in formats.items() if each is not None}
        self.names = tuple(self._formats)
        last_steps = {field.steps[-1] for field in value_fields if field.name in self._formats}
        names = {step for step in last_steps if isinstance(step, str)}
        self._lenient_pattern = _lenient_pattern(names, items=is_part or names != last_steps)
        self.formatters: Mapping[str, Callable[[int], str]] = {
            field.name: partial(scaled_text, scale=field.scale or 0) for field in fields if field.type == DECIMAL
        }

    def may_be_lenient(self, raw: bytes) -> bool:
        """Return whether the bytes may contain a text such as `"1_000"`. Python accepts this invalid decimal."""
        if not self._formats:
            return False
        escapes = b"\\" in raw
        # Most events pass a fast check, and need no search with a regular expression.
        if not escapes and raw.isascii() and not (b"_" in raw and _UNDERSCORE.search(raw)):
            return False
        return bool(self._lenient_pattern.search(raw) or (escapes and _ESCAPED_NAME.search(raw)))

    def scale_all(self, shape: Shape, events: Sequence[Any]) -> None:
        """Replace the decimals in several events with scaled integers, or raise ArithmeticError or ValueError."""
        for name, decimal_format in self._formats.items():
            shape.put(events, name, decimal_format.scale_values(shape.values(events, name)))

    def scale(self, shape: Shape, event: Any) -> None:
        """Replace the decimals in one event with scaled integers, or raise InvalidEvent."""
        for name, decimal_format in self._formats.items():
            (value,) = shape.values((event,), name)
            if value is not None:
                shape.put((event,), name, (decimal_format.scale_value(name, value),))


def _lenient_pattern(names: set[str], *, items: bool) -> re.Pattern[bytes]:
    """Return a pattern for JSON members with a name in `names` and a value such as `"1_000"`."""
    patterns = [re.escape(msgspec.json.encode(name)) + rb"\s*:\s*" + _LENIENT_TEXT for name in sorted(names)]
    if items:
        patterns.append(rb"[\[,]\s*" + _LENIENT_TEXT + rb'[^"]*"\s*[,\]]')
    return re.compile(b"|".join(patterns))
