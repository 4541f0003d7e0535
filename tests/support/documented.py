"""The commands and files that pages show, as a reader would copy them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        language: of a fenced one; empty: it is indented, as commands are.
    """

    page: Path
    language: str
    text: str

    def commands(self) -> list[str]:
        """Its commands, each with its continued lines and its here-document."""
        found: list[str] = []
        until, going_on = "", False
        for line in self.text.splitlines():
            if until or going_on:
                found[-1] += f"\n{line}"
                until = "" if until and line == until else until
            elif line.strip():
                found.append(line)
                here = re.search(r"<<'?(\w+)'?", line)
                until = here[1] if here else ""
            going_on = not until and line.endswith("\\")
        return found


def blocks(page: Path) -> Iterator[Block]:
    """All of a page, in their order."""
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    indented = re.compile(r"(?:(?<=\n\n)|\A)((?: {4}.*\n+)+)")
    text = page.read_text() + "\n"
    found = [(m.start(), m[1], m[2]) for m in fenced.finditer(text)]
    bare = fenced.sub(lambda m: re.sub(r"[^\n]", "#", m[0]), text)
    found += [(m.start(), "", textwrap.dedent(m[1])) for m in indented.finditer(bare)]
    for _, language, code in sorted(found):
        yield Block(page, language, code.rstrip("\n") + "\n")


def commands(page: Path) -> list[str]:
    """Every command of a page."""
    return [command for block in blocks(page) if not block.language for command in block.commands()]
