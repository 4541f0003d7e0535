"""Parse filter and derive expressions, which are a small part of SQL, into a syntax tree."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

MAX_DEPTH = 40
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
          |(?P<string>'(?:[^']|'')*')
          |"(?P<quoted>[^"]*)"
          |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
          |(?P<comment>--|/\*)
          |(?P<sign><>|!=|<=|>=|\|\||::|[-+*/%<>=(),.]))""",
    re.VERBOSE,
)
_RESERVED = frozenset(
    "and or not is null true false in between like ilike case when then else end from as".split()  # noqa: SIM905
)
_INT64 = range(-(2**63), 2**63)


class ExpressionError(ValueError):
    """The error for an invalid expression, with the reason and the remedy in the message."""


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant: str, int, float, bool or None."""

    value: str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Column:
    """The name of a field, a computed field (derive) or a metric."""

    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call of an operator or a function. The name is in upper case, such as `AND` or `ROUND`."""

    name: str
    args: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """A `CASE` expression. `CASE x WHEN 1` is parsed as `CASE WHEN x = 1`."""

    branches: tuple[tuple[Node, Node], ...]
    default: Node


Node = Literal | Column | Call | Case


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an expression. `kind` is number, string, quoted, word, sign or end."""

    kind: str
    text: str
    position: int


def tokenize(text: str) -> list[Token]:
    """Split an expression into tokens with an `end` token last, or raise ExpressionError."""
    tokens, position, end = [], 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            at = position + len(text[position:]) - len(text[position:].lstrip())
            what = "a text without a closing quote" if text[at] in "'\"" else f"{text[at]!r}"
            raise ExpressionError(f"cannot read {what} at character {at + 1}; write one SQL expression over the fields")
        kind = str(match.lastgroup)
        if kind == "comment":
            raise ExpressionError("comments are not allowed; remove the comment")
        tokens.append(Token(kind, match.group(kind), match.start(kind)))
        position = match.end()
    return [*tokens, Token("end", "the end", end)]


def parse(text: str) -> Node:
    """Parse an expression.

    Raises:
        ExpressionError: the text is not exactly one expression of the grammar.
    """
    return _Parser(tokenize(text)).parse_all()


class _Parser:
    """A recursive descent parser.

    Operators, from the weakest binding to the strongest, are OR, AND, NOT, comparisons, ||, + -, * / %, and signs.
    """

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens, self._next, self._depth = tokens, 0, 0

    @property
    def _token(self) -> Token:
        return self._tokens[self._next]

    def _take_word(self, *words: str) -> bool:
        if self._token.kind == "word" and self._token.text.lower() in words:
            self._next += 1
            return True
        return False

    def _take_sign(self, *signs: str) -> str | None:
        if self._token.kind == "sign" and self._token.text in signs:
            self._next += 1
            return self._tokens[self._next - 1].text
        return None

    def _fail(self, wanted: str) -> NoReturn:
        token = self._token
        where = "at the end" if token.kind == "end" else f"at character {token.position + 1}, before '{token.text}'"
        raise ExpressionError(f"{wanted} expected {where}")

    def _expect_sign(self, sign: str) -> None:
        if not self._take_sign(sign):
            self._fail(f"'{sign}'")

    def _expect_word(self, word: str) -> None:
        if not self._take_word(word):
            self._fail(word.upper())

    def parse_all(self) -> Node:
        node = self._or()
        if self._take_sign("::"):
            raise ExpressionError("'::' fails for texts of another type; write TRY_CAST(… AS type) to get NULL")
        if self._take_word("over"):
            raise ExpressionError("OVER uses several events, but an expression has only one event; remove OVER")
        if self._token.kind != "end":
            self._fail("an operator or the end")
        return node

    def _chain(self, operand: Callable[[], Node], take: Callable[[], str | None]) -> Node:
        node, count = operand(), 0
        while name := take():
            count += 1
            if count > MAX_DEPTH:
                raise ExpressionError(
                    f"more than {MAX_DEPTH} {name} in a row; use IN, or split the expression into several derives"
                )
            node = Call(name, (node, operand()))
        return node

    def _or(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExpressionError(f"nested more than {MAX_DEPTH} deep; split the expression into several derives")
        terms = [self._and()]
        while self._take_word("or"):
            terms.append(self._and())
        self._depth -= 1
        return terms[0] if len(terms) == 1 else Call("OR", tuple(terms))

    def _and(self) -> Node:
        terms = [self._not()]
        while self._take_word("and"):
            terms.append(self._not())
        return terms[0] if len(terms) == 1 else Call("AND", tuple(terms))

    def _not(self) -> Node:
        negations = 0
        while self._take_word("not"):
            negations += 1
        node = self._comparison()
        return Call("NOT", (node,)) if negations % 2 else node

    def _comparison(self) -> Node:
        node = self._concatenation()
        if sign := self._take_sign("=", "<>", "!=", "<", "<=", ">", ">="):
            node = Call("<>" if sign == "!=" else sign, (node, self._concatenation()))
            if self._take_sign("=", "<>", "!=", "<", "<=", ">", ">="):
                raise ExpressionError("comparisons cannot be chained; join two comparisons with AND")
            return node
        if self._take_word("is"):
            return self._is(node)
        negated = self._take_word("not")
        if self._take_word("in"):
            node = self._in(node)
        elif self._take_word("between"):
            low = self._concatenation()
            self._expect_word("and")
            node = Call("AND", (Call(">=", (node, low)), Call("<=", (node, self._concatenation()))))
        elif self._take_word("like"):
            node = self._like("LIKE", node)
        elif self._take_word("ilike"):
            node = self._like("ILIKE", node)
        elif negated:
            self._fail("IN, BETWEEN, LIKE or ILIKE")
        return Call("NOT", (node,)) if negated else node

    def _is(self, node: Node) -> Node:
        negated = self._take_word("not")
        for word in ("null", "true", "false"):
            if self._take_word(word):
                node = Call(f"IS {word.upper()}", (node,))
                return Call("NOT", (node,)) if negated else node
        self._fail("NULL, TRUE or FALSE")

    def _like(self, name: str, node: Node) -> Node:
        pattern = self._concatenation()
        escape = (self._concatenation(),) if self._take_word("escape") else ()
        return Call(name, (node, pattern, *escape))

    def _in(self, node: Node) -> Node:
        self._expect_sign("(")
        if self._token.text.lower() in ("select", "with"):
            raise ExpressionError("subqueries are not allowed; list the values: IN ('a', 'b')")
        return Call("IN", (node, *self._list()))

    def _list(self) -> tuple[Node, ...]:
        if self._take_sign(")"):
            return ()
        items = [self._or()]
        while self._take_sign(","):
            items.append(self._or())
        self._expect_sign(")")
        return tuple(items)

    def _concatenation(self) -> Node:
        return self._chain(self._sum, lambda: self._take_sign("||"))

    def _sum(self) -> Node:
        return self._chain(self._product, lambda: self._take_sign("+", "-"))

    def _product(self) -> Node:
        return self._chain(self._signed, lambda: self._take_sign("*", "/", "%"))

    def _signed(self) -> Node:
        minus = False
        while sign := self._take_sign("-", "+"):
            minus ^= sign == "-"
        if self._token.kind == "number":
            self._next += 1
            return _number(self._tokens[self._next - 1].text, minus)
        node = self._primary()
        return Call("NEGATE", (node,)) if minus else node

    def _primary(self) -> Node:
        token = self._token
        self._next += token.kind != "end"
        match token.kind:
            case "string":
                return Literal(_string(token.text[1:-1].replace("''", "'")))
            case "quoted":
                return self._column(token.text)
            case "sign" if token.text == "(":
                if self._token.text.lower() in ("select", "with"):
                    raise ExpressionError("subqueries are not allowed; an expression uses only one event")
                node = self._or()
                self._expect_sign(")")
                return node
            case "word":
                return self._from_word(token.text.lower(), token)
        self._next -= token.kind != "end"
        self._fail("a column, a value or a function")

    def _from_word(self, word: str, token: Token) -> Node:
        if word in ("null", "true", "false"):
            return Literal({"null": None, "true": True, "false": False}[word])
        if word == "case":
            return self._case()
        if word in ("select", "with", "exists"):
            raise ExpressionError(f"{word.upper()} is not allowed; an expression uses only one event")
        if word in _RESERVED:
            self._next -= 1
            self._fail(f"a column, a value or a function (a field named '{word}' is written \"{word}\")")
        if not self._take_sign("("):
            return self._column(word)
        if word in ("cast", "convert"):
            raise ExpressionError(
                f"{word.upper()} fails for texts of another type; write TRY_CAST(… AS type) to get NULL"
            )
        if word == "try_cast":
            return self._try_cast()
        if word == "extract":
            part = self._token.text.upper()
            self._next += self._token.kind in ("word", "string")
            self._expect_word("from")
            node = Call("DATE_PART", (Literal(part.strip("'")), self._or()))
            self._expect_sign(")")
            return node
        if self._take_sign("*"):
            raise ExpressionError(f"{word.upper()}(*) uses several events; write a metric in aggregations[].metrics")
        call = Call(word.upper(), self._list())
        if self._take_word("over"):
            raise ExpressionError(f"{word.upper()}(…) OVER uses several events, but an expression has only one event")
        return call

    def _column(self, name: str) -> Node:
        if self._take_sign("."):
            raise ExpressionError(f"'{name}.' is not allowed; write column names without a table")
        return Column(name)

    def _try_cast(self) -> Node:
        node = self._or()
        self._expect_word("as")
        kind = self._token.text.upper()
        if self._token.kind != "word":
            self._fail("a type")
        self._next += 1
        if self._take_sign("("):
            digits = [self._digits()]
            while self._take_sign(","):
                digits.append(self._digits())
            self._expect_sign(")")
            kind = f"{kind}({','.join(digits)})"
        self._expect_sign(")")
        return Call("TRY_CAST", (node, Literal(kind)))

    def _digits(self) -> str:
        if not self._token.text.isdecimal():
            self._fail("a number of digits")
        self._next += 1
        return self._tokens[self._next - 1].text

    def _case(self) -> Node:
        operand = None if self._token.text.lower() == "when" else self._or()
        branches: list[tuple[Node, Node]] = []
        while self._take_word("when"):
            condition = self._or()
            self._expect_word("then")
            value = self._or()
            branches.append((condition if operand is None else Call("=", (operand, condition)), value))
        if not branches:
            self._fail("WHEN")
        default = self._or() if self._take_word("else") else Literal(None)
        self._expect_word("end")
        return Case(tuple(branches), default)


def _number(text: str, minus: bool) -> Literal:
    if re.fullmatch(r"\d+", text):
        if len(text) > 20 or (value := -int(text) if minus else int(text)) not in _INT64:
            raise ExpressionError(f"{'-' * minus}{text} does not fit 64 bits; write the number with a decimal point")
        return Literal(value)
    number = float(text)
    if not math.isfinite(number):
        raise ExpressionError(f"{text} is too large for a number; at most 1.7e308")
    return Literal(-number if minus else number)


def _string(text: str) -> str:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ExpressionError(
            "a text contains a NUL or half a surrogate pair; no event has these; remove the character"
        )
    return text
