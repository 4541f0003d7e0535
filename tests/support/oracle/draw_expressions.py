"""Random filter and derive expressions over any columns, with the whole grammar that the oracle computes."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

NUMERIC = ("integer", "number")


class Drawer:
    """Draws expressions of a wanted type.

    Args:
        rnd: the source of randomness.
        types: the types of columns by name.
        constants: the constants that may occur, by type.
    """

    def __init__(
        self, rnd: random.Random, types: Mapping[str, str], constants: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self._rnd, self._types, self._constants = rnd, types, constants or CONSTANTS

    def draw(self, kind: str, depth: int = 3) -> str:
        """Draw an expression of this type."""
        rnd = self._rnd
        if depth <= 0 or rnd.random() < 0.15:
            return self._leaf(kind)
        return rnd.choice(self._made[kind])(self, depth - 1)

    def _leaf(self, kind: str) -> str:
        fitting = [name for name, column_type in self._types.items() if column_type == kind]
        if fitting and self._rnd.random() < 0.65:
            return self._rnd.choice(fitting)
        return self._rnd.choice(self._constants[kind])

    def _numeric(self) -> str:
        return self._rnd.choice(NUMERIC)

    def _any(self) -> str:
        return self._rnd.choice(["integer", "number", "string", "boolean", "timestamp"])

    def _same(self, kind: str, depth: int) -> str:
        """Draw a function that returns one of several values of a type, such as COALESCE."""
        a, b, c = (self.draw(kind, depth) for _ in range(3))
        condition = self.draw("boolean", depth)
        return self._rnd.choice([
            f"COALESCE({a}, {b})", f"NULLIF({a}, {b})", f"IFNULL({a}, {b})", f"IF({condition}, {a}, {b})",
            f"CASE WHEN {condition} THEN {a} ELSE {b} END", f"CASE {a} WHEN {b} THEN {c} END",
        ])  # fmt: skip

    def _extreme(self, kind: str, depth: int) -> str:
        return f"{self._rnd.choice(['GREATEST', 'LEAST'])}({self.draw(kind, depth)}, {self.draw(kind, depth)})"

    def _arithmetic(self, kind: str, depth: int) -> str:
        a, b, sign = self.draw(kind, depth), self.draw(kind, depth), self._rnd.choice("+-*")
        return f"({a} {sign} {b})"

    def _compared(self, depth: int) -> str:
        kind = self._any()
        a = self.draw(kind, depth)
        b = self.draw(self._numeric() if kind in NUMERIC else kind, depth)
        signs = ["=", "<>"] if kind == "boolean" else ["=", "<>", "<", "<=", ">", ">="]
        if kind == "timestamp" and self._rnd.random() < 0.5:
            b = "'2026-03-01T12:00:00+01:00'"
        return f"({a} {self._rnd.choice(signs)} {b})"

    def _cast(self, kind: str, depth: int) -> str:
        wanted = {"integer": ["number", "boolean", "timestamp", "string"], "number": ["integer", "boolean", "string"]}
        wanted |= {"string": ["integer", "boolean", "timestamp"], "boolean": ["integer", "number", "string"]}
        wanted |= {"timestamp": ["integer"]}
        return f"TRY_CAST({self.draw(self._rnd.choice(wanted[kind]), depth)} AS {kind})"

    _made: Mapping[str, list[Callable[[Drawer, int], str]]]


def _one(template: str, *kinds: str) -> Callable[[Drawer, int], str]:
    """Return a function that draws a template's arguments of these types."""
    return lambda self, depth: template.format(*(self.draw(kind, depth) for kind in kinds))


def _shared(kind: str) -> list[Callable[[Drawer, int], str]]:
    return [lambda self, depth: self._same(kind, depth)] * 3 + [lambda self, depth: self._cast(kind, depth)]


CONSTANTS: Mapping[str, Sequence[str]] = {
    "integer": ["0", "1", "-3", "7", "9223372036854775807", "-9223372036854775808", "9007199254740993"],
    "number": ["0.0", "-0.0", "2.5", "-1.5", "1e300", "1e-300", ".5", "3.0"],
    "string": ["'a'", "''", "'B b'", "'12'", "'é'", "'it''s'", "'-0'", "'true'"],
    "boolean": ["TRUE", "FALSE"],
    "timestamp": ["TRY_CAST(0 AS timestamp)", "TRY_CAST(1770000000123 AS timestamp)"],
}
TAME = {**CONSTANTS, "integer": ["0", "1", "-3", "7"], "number": ["0.0", "-0.0", "2.5", "-1.5", ".5", "3.0"]}
"""Constants without those whose products soon overflow an integer or a double."""
_PARTS = ("YEAR", "QUARTER", "MONTH", "WEEK", "DAY", "DOY", "DOW", "ISODOW", "HOUR", "MINUTE", "SECOND")
Drawer._made = {
    "integer": [
        *_shared("integer"),
        lambda self, depth: self._extreme("integer", depth),
        lambda self, depth: self._arithmetic("integer", depth),
        lambda self, depth: self._arithmetic("integer", depth),
        _one("({} % {})", "integer", "integer"), _one("MOD({}, 3)", "integer"), _one("-({})", "integer"),
        _one("ABS({})", "integer"), _one("SIGN({})", "integer"), _one("LENGTH({})", "string"),
        _one("TIMESTAMPDIFF('minute', {}, {})", "timestamp", "timestamp"),
        _one("ROUND({})", "integer"), *(_one(f"EXTRACT({part} FROM {{}})", "timestamp") for part in _PARTS),
    ],
    "number": [
        *_shared("number"),
        lambda self, depth: self._extreme("number", depth),
        lambda self, depth: self._arithmetic("number", depth),
        lambda self, depth: self._arithmetic("number", depth),
        lambda self, depth: f"({self.draw('integer', depth)} + {self.draw('number', depth)})",
        lambda self, depth: f"COALESCE({self.draw('integer', depth)}, {self.draw('number', depth)})",
        _one("({} / {})", "number", "number"), _one("({} / {})", "integer", "integer"), _one("-({})", "number"),
        _one("ABS({})", "number"), _one("SIGN({})", "number"), _one("ROUND({})", "number"), _one("FLOOR({})", "number"),
        _one("CEIL({})", "number"), _one("SQRT({})", "number"), _one("EXTRACT(EPOCH FROM {})", "timestamp"),
    ],
    "string": [
        *_shared("string"),
        _one("UPPER({})", "string"), _one("LOWER({})", "string"), _one("TRIM({})", "string"),
        _one("({} || {})", "string", "string"), _one("({} || {})", "string", "integer"),
        _one("CONCAT({}, {}, {})", "string", "integer", "boolean"), _one("SUBSTR({}, 2, 3)", "string"),
        _one("LEFT({}, 2)", "string"), _one("REPLACE({}, 'a', 'bb')", "string"),
        _one("SPLIT_PART({}, ' ', 2)", "string"), _one("REGEXP_EXTRACT({}, '([A-Z]) ?(.)', 2)", "string"),
        _one("INITCAP({})", "string"), _one("LEFT(MD5({}), 4)", "string"),
    ],
    "boolean": [
        *_shared("boolean"), *[Drawer._compared] * 4,
        _one("({} AND {})", "boolean", "boolean"), _one("({} OR {})", "boolean", "boolean"),
        _one("(NOT {})", "boolean"), _one("({} IS NULL)", "integer"), _one("({} IS NOT NULL)", "string"),
        _one("({} IS NOT TRUE)", "boolean"), _one("({} IS FALSE)", "boolean"), _one("({} IN (1, -3, 7))", "integer"),
        _one("({} NOT IN (1, 2.5))", "number"), _one("({} IN ('a', ''))", "string"), _one("({} LIKE 'a%')", "string"),
        _one("({} ILIKE '%B_')", "string"), _one("STARTS_WITH({}, 'a')", "string"),
        _one("REGEXP_LIKE({}, '^[a-zA-Z]+$')", "string"),
        _one("CONTAINS({}, 'b')", "string"), _one("ENDS_WITH({}, 's')", "string"),
        _one("({} BETWEEN {} AND {})", "number", "integer", "number"),
    ],
    "timestamp": [
        *_shared("timestamp"),
        lambda self, depth: self._extreme("timestamp", depth),
        _one("DATE_TRUNC('week', {})", "timestamp"), _one("DATE_TRUNC('hour', {})", "timestamp"),
        _one("TO_TIMESTAMP({})", "integer"), _one("TO_TIMESTAMP({})", "number"),
    ],
}  # fmt: skip
