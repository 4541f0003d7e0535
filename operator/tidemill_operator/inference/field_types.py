"""Decides the type of each field, from CSV text or from JSON types."""

from __future__ import annotations

import datetime as dt
import decimal
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tidemill_contract.events.timestamps import RFC3339, TimeFormat
from tidemill_operator.event_files.numbers import BOOLEANS, COMMA, NULLS, read_number
from tidemill_operator.inference.columns import (
    ARRAY,
    BOOLEAN,
    INTEGER,
    NUMBER,
    OBJECT,
    OTHER,
    STRING,
    STRINGS,
    TIMESTAMP,
    Column,
)
from tidemill_operator.inference.time_forms import (
    MIN_FITTING_SHARE,
    TimeForm,
    find_epoch_form,
    find_text_form,
    suggests_time,
)

MONEY = NUMBER
"""Type of numbers with a fraction. An exact type suits amounts of money."""
_CODE = re.compile(r"\+\d+|-?0\d+", re.ASCII)
_COMPACT_DATE = re.compile(r"(19|20)\d{2}(0[1-9]|1[0-2])([0-2]\d|3[01])", re.ASCII)
_INT64_LIMIT = 2**63
_MIN_CODE_SHARE = 0.01
"""The minimum share of codes in a column of codes. A code has a leading zero (01067) or a plus (+49)."""
_UNREADABLE = {OBJECT: "an object without members", ARRAY: "an array of objects or numbers", OTHER: "of no type"}


@dataclass(frozen=True, eq=False)
class FieldDraft:
    """A drafted field of the pipeline, with facts from the sample.

    Attributes:
        type: the field's type, or empty if no field can be read from this member.
        misfits: the number of values that do not fit the type.
        read: converts a value of the column to a number or a time, or to None if that is not possible.
    """

    name: str
    type: str
    column: Column
    empty: int = 0
    form: TimeForm | None = None
    misfits: int = 0
    misfit: str = ""
    note: str = ""
    read: Callable[[Any], Any] = field(default=lambda value: value)

    @property
    def numeric(self) -> bool:
        """Whether sums and averages of the field make sense."""
        return self.type not in (STRING, BOOLEAN, TIMESTAMP, STRINGS, "")


def draft_field(name: str, column: Column, events: int, zone: str) -> FieldDraft:
    """Draft the field for a column."""
    draft = _draft_from_cells(name, column, zone) if column.from_csv else _draft_from_values(name, column, zone)
    present = sum(column.distinct.values()) if column.from_csv else column.kinds.total()
    null_count = _count_nulls(column) if column.from_csv and draft.type != STRING else 0
    return FieldDraft(**{**vars(draft), "empty": events - present + null_count})


def _count_nulls(column: Column) -> int:
    return sum(count for text, count in column.distinct.items() if text.lower() in NULLS)


def _draft_from_cells(name: str, column: Column, zone: str) -> FieldDraft:
    texts = Counter({text: count for text, count in column.distinct.items() if text.lower() not in NULLS})
    total = sum(texts.values())
    if not total:
        return FieldDraft(name, STRING, column, note="empty in all sampled rows: check the type")
    words = {text.lower() for text in texts}
    if words <= set(BOOLEANS) - {"0", "1"} and (
        len({BOOLEANS[word] for word in words}) == 2 or words <= {"true", "false"}
    ):
        return FieldDraft(name, BOOLEAN, column, read=lambda cell: BOOLEANS.get(cell.strip().lower()))
    numbers = {text: number for text in texts if (number := read_number(text, column.decimal)) is not None}
    if sum(texts[text] for text in numbers) >= MIN_FITTING_SHARE * total:
        return _draft_from_numbers(name, column, texts, numbers, zone)
    form = find_text_form(texts, month_first=column.decimal != COMMA)
    return _draft_time(name, column, form, texts, zone) if form is not None else FieldDraft(name, STRING, column)


def _draft_from_numbers(
    name: str, column: Column, texts: Counter[str], numbers: dict[str, str], zone: str
) -> FieldDraft:
    codes = sum(texts[text] for text in numbers if _CODE.fullmatch(text))
    if codes and codes >= _MIN_CODE_SHARE * texts.total():
        return FieldDraft(name, STRING, column, note="digits with leading zeros or a plus: a code, not a number")
    misfits = [text for text in texts if text not in numbers]
    attributes = {"misfits": sum(texts[text] for text in misfits), "misfit": misfits[0] if misfits else ""}
    decimal = column.decimal

    def read(cell: str) -> float | None:
        number = read_number(cell.strip(), decimal)
        return None if number is None else float(number)

    are_integers = all(number.lstrip("-").isdigit() for number in numbers.values())
    # Check the length first, because int() rejects texts of more than 4,300 digits.
    if are_integers and any(len(number) > 20 or abs(int(number)) >= _INT64_LIMIT for number in numbers.values()):
        return FieldDraft(name, STRING, column, note="numbers of more than 64 bits are kept as texts")
    if are_integers and len(numbers) > 1 and all(map(_COMPACT_DATE.fullmatch, numbers)):
        return _draft_time(name, column, TimeForm("%Y%m%d", local=True, date_only=True), texts, zone)
    epoch_form = find_epoch_form(list(map(float, numbers.values())), name)
    if epoch_form is not None:
        return _draft_time(name, column, epoch_form, texts, zone)
    return FieldDraft(name, INTEGER if are_integers else MONEY, column, read=read, **attributes)  # type: ignore[arg-type]


def _draft_from_values(name: str, column: Column, zone: str) -> FieldDraft:
    kinds = Counter(column.kinds)
    if kinds[INTEGER] and kinds[NUMBER]:
        kinds[NUMBER] += kinds.pop(INTEGER)
    ((kind, count),) = kinds.most_common(1)
    if kind in _UNREADABLE:
        return FieldDraft(name, "", column, note=_UNREADABLE[kind])
    misfit = next((value for value in column.values if not _is_kind(kind, value)), "")
    attributes = {"misfits": kinds.total() - count, "misfit": str(misfit)}
    fitting = Counter({value: count for value, count in column.distinct.items() if _is_kind(kind, value)})
    if kind == STRING:
        form = find_text_form(fitting, month_first=True)
        if form is not None:
            return _draft_time(name, column, form, fitting, zone)
        note = ""
        if all(read_number(text, ".") is not None and not _CODE.fullmatch(text) for text in fitting):
            note = "numbers in quotes: TRY_CAST in a derive converts them to numbers"
        return FieldDraft(name, STRING, column, note=note, **attributes)  # type: ignore[arg-type]
    if kind in (INTEGER, NUMBER):
        # float() returns infinity for a very long decimal, but raises an error for a very long integer.
        epoch_form = find_epoch_form([float(decimal.Decimal(value)) for value in fitting], name)
        if epoch_form is not None:
            return _draft_time(name, column, epoch_form, fitting, zone)
        if kind == INTEGER and any(abs(value) >= _INT64_LIMIT for value in fitting):
            attributes["note"] = "some integers have more than 64 bits: they are stored as rounded numbers"
            return FieldDraft(name, NUMBER, column, **attributes)  # type: ignore[arg-type]
        return FieldDraft(name, MONEY if kind == NUMBER else INTEGER, column, **attributes)  # type: ignore[arg-type]
    if kind == TIMESTAMP:
        local = any(not isinstance(value, dt.datetime) or value.tzinfo is None for value in fitting)
        date_only = not any(isinstance(value, dt.datetime) for value in fitting)
        return _draft_time(name, column, TimeForm(local=local, date_only=date_only), fitting, zone)
    return FieldDraft(name, kind, column, **attributes)  # type: ignore[arg-type]


def _is_kind(kind: str, value: Any) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer" | "number":
            return isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool)
        case "strings":
            return isinstance(value, tuple)
    return isinstance(value, dt.date)


def _draft_time(name: str, column: Column, form: TimeForm, values: Counter[Any], zone: str) -> FieldDraft:
    time_format = TimeFormat(form.format or RFC3339, zone if form.format is None or "%" in form.format else None)

    def read(value: Any) -> int | None:
        if isinstance(value, dt.date):
            value = value.isoformat()
        if isinstance(value, str):
            value = value.strip()
            if form.format is None and value.lstrip("-").isdigit():
                value = int(value)
        elif isinstance(value, float):
            value = str(value)
        try:
            return time_format.micros(value)
        except (ValueError, ArithmeticError, TypeError):
            return None

    misfits = [value for value in values if read(value) is None]
    note = "the sample does not show whether the day or the month comes first" if form.ambiguous else ""
    if suggests_time(name) is False and form.format in ("s", "us", "ns") and not note:
        note = "the values look like times"
    return FieldDraft(
        name,
        TIMESTAMP,
        column,
        form=form,
        misfits=sum(values[value] for value in misfits),
        misfit=str(misfits[0]) if misfits else "",
        note=note,
        read=read,
    )
