"""`make sim-scaling`: runs all policies on all load shapes, and writes tables, JSON and pictures below build/.

If NAB_DIR names a copy of the Numenta Anomaly Benchmark, its recordings of traffic and cloud figures are also shapes.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track

from sim.compare import compare
from sim.report import print_tables, write
from sim.shapes import recorded_shapes, shapes

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run the program, and return its exit code."""
    parser = argparse.ArgumentParser(prog="sim", description="Compare scaling policies on load shapes.")
    parser.add_argument("--seed", type=int, default=1, help="seed of the noise (default: 1)")
    parser.add_argument(
        "--skip", type=float, default=0.0, help="hours to skip at the beginning of recordings (default: 0)"
    )
    parser.add_argument("--only", metavar="TEXT", help="run only shapes whose name contains this text")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="folder for JSON and pictures")
    arguments = parser.parse_args()
    folder = os.environ.get("NAB_DIR")
    chosen = [*shapes(arguments.seed), *(recorded_shapes(Path(folder), skip=arguments.skip) if folder else ())]
    chosen = [shape for shape in chosen if not arguments.only or arguments.only in shape.name]
    if not chosen:
        print(f"--only: no shape's name contains '{arguments.only}'", file=sys.stderr)
        return 2
    console = Console(width=None if sys.stdout.isatty() else 140)
    watched = track(chosen, description="shapes", console=console, disable=not console.is_terminal, transient=True)
    comparisons = [compare(shape) for shape in watched]
    print_tables(comparisons, console)
    written = write(comparisons, arguments.build, seed=arguments.seed)
    console.print(f"wrote {written[0]} and {len(written) - 1} pictures", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
