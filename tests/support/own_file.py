"""A CSV file as a shop exports it, and the results that a pipeline must have after reading it."""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

HEADER = "Bestell-Nr;Datum;Kunde;Land;Betrag (EUR);Menge;Bezahlt;Notiz"
_COUNTRIES = ("DE", "AT", "CH", "NO", "FR")
_NOTES = ("", "", '"Müller; Söhne"', '"zwei\nZeilen"', "ok", "schnell, bitte", '"er sagte ""ja"""')


@dataclass
class Shop:
    """The results that a pipeline must have after the file.

    Attributes:
        rows: the number of rows.
        events: the number of valid events by country, which may be None.
        revenue: the sum of amounts by country.
        quantity: the sum of quantities.
        refused: the number of dead letters by reason.
    """

    rows: int = 0
    events: Counter[str | None] = field(default_factory=Counter)
    revenue: dict[str | None, Decimal] = field(default_factory=dict)
    quantity: int = 0
    refused: Counter[str] = field(default_factory=Counter)


def write_shop(path: Path, rows: int, seed: int = 1) -> Shop:
    """Write the file: semicolons, a byte order mark, decimal commas, German dates, empty cells and some invalid rows.

    Args:
        path: the file.
        rows: the number of rows without the header.
        seed: of the random values.
    """
    draw, shop = random.Random(seed), Shop(rows)
    moment, lines = dt.datetime(2025, 3, 1, 8, 0), [HEADER]
    for number in range(rows):
        moment += dt.timedelta(minutes=draw.randint(0, 10))
        country = None if draw.random() < 0.01 else draw.choice(_COUNTRIES)
        amount = None if draw.random() < 0.02 else Decimal(draw.randint(50, 499_999)) / 100
        quantity, reason = draw.randint(1, 9), None
        cells = [
            str(100_000 + number), moment.strftime("%d.%m.%Y %H:%M"), f"K{draw.randint(1, 900):04}", country or "",
            "" if amount is None else _german(amount), str(quantity), draw.choice(("ja", "nein")), draw.choice(_NOTES),
        ]  # fmt: skip
        match number % 400:
            case 17:
                cells[1], reason = "", "missing_field"
            case 117:
                cells[1], reason = "31.02.2025 08:00", "mistyped"
            case 217:
                cells[4], reason = "auf Anfrage", "mistyped"
            case 317:
                cells, reason = [*cells, "zu", "viel"], "not_an_object"
        lines.append(";".join(cells))
        if reason is not None:
            shop.refused[reason] += 1
            continue
        shop.events[country] += 1
        shop.quantity += quantity
        shop.revenue[country] = shop.revenue.get(country, Decimal(0)) + (amount or 0)
    path.write_bytes(b"\xef\xbb\xbf" + ("\r\n".join(lines) + "\r\n").encode())
    return shop


def _german(amount: Decimal) -> str:
    return f"{amount:,.2f}".translate(str.maketrans(",.", ".,"))
