"""Entry point of `tidemill`, which combines the subcommands and turns errors into messages and exit codes."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from tidemill_contract.files import FileTooLarge

SUBCOMMANDS = ("init", "validate", "plan", "up", "send", "status", "explain", "replay", "down")
EXIT_ERROR = 1
EXIT_USAGE = 2

_EPILOG = """\
examples:
  tidemill init --from orders.csv --output orders.yaml
  tidemill validate crds/examples/flights.yaml
  tidemill plan crds/examples/flights.yaml --output diff
  tidemill up -f crds/examples/flights.yaml --ready-file ready.json
  tidemill send -f orders.csv --pipeline orders
  tidemill status
  tidemill explain flights
  tidemill replay flights --aggregation by_carrier
  tidemill down --delete-data
"""


class CommandError(Exception):
    """The error of a failed command, with the reason and the remedy in its message."""

    def __init__(self, message: str, *, code: int = EXIT_ERROR) -> None:
        super().__init__(message)
        self.code = code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="tidemill",
        description="Streaming analytics from a YAML resource: Kafka events in, exact windowed answers out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for name in SUBCOMMANDS:
        module = importlib.import_module(f"tidemill_operator.cli.{name}")
        before = set(subparsers.choices)
        module.add_parser(subparsers)
        for added in set(subparsers.choices) - before:
            subparsers.choices[added].set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0 success, 1 failure, 2 wrong usage or an invalid file.
    """
    parsed = build_parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except CommandError as error:
        print(f"tidemill {parsed.command}: {error}", file=sys.stderr)
        return error.code
    except FileTooLarge as error:
        print(f"tidemill {parsed.command}: {error.filename}: {error.strerror}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_ERROR
