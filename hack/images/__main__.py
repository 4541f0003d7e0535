"""Builds Tidemill's images and, with --dev, images of Kafka, Postgres, Redis and Prometheus for development.

With a running Docker engine, the base image and the dependencies are pulled. Otherwise, an engine runs during the
build, and the base image, wheels and jars are built or fetched on this machine (--local; needs Debian and root).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from images import material
from images.catalogue import CACHE, CONNECT, DEVELOPMENT, LOCAL, TIDEMILL, Image, content_tag, revision, version
from images.engine import BuildError, Engine, own_engine

PULLED_BASE = "python:3.11-slim-bookworm"
PULLED_DEVELOPMENT_BASE = "debian:bookworm-slim"


@dataclass(frozen=True)
class _Order:
    image: Image
    reference: str
    arguments: dict[str, str]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="hack/images/build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tag", help="tag of the images (default: the version and a hash of the sources)")
    parser.add_argument(
        "--base-image",
        metavar="IMAGE",
        help=f"default: {PULLED_BASE}, or built here with --local",
    )
    parser.add_argument("--dev", action="store_true", help="also build tidemill-dev/{kafka,postgres,redis,prometheus}")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="build only these, e.g. ingest kafka; local: `tidemill up` in one container; connect: Kafka Connect",
    )
    parser.add_argument("--archive", type=Path, metavar="FILE", help="write all images into one archive")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--local", action="store_true", help="build or fetch base image, wheels and jars on this machine"
    )
    source.add_argument("--pull", action="store_true", help="pull the base image and let the builds fetch packages")
    parser.add_argument("--force", action="store_true", help="also build images that exist already")
    return parser.parse_args()


@contextlib.contextmanager
def _engine() -> Iterator[tuple[Engine, bool]]:
    """Yield the Docker engine, and whether this program has started it."""
    running = Engine()
    if running.answers():
        yield running, False
        return
    _say("no Docker engine answers; starting an engine for the build")
    with own_engine() as engine:
        yield engine, True


def _orders(arguments: argparse.Namespace, base: str, development_base: str) -> list[_Order]:
    labels = {"VERSION": version(), "REVISION": revision()}
    tag = arguments.tag or content_tag(TIDEMILL, also=base)
    orders = [_Order(image, f"{image.name}:{tag}", {"BASE_IMAGE": base, **labels}) for image in TIDEMILL]
    if "local" in (arguments.only or ()):
        tag = arguments.tag or content_tag((LOCAL,), also=base)
        orders.append(_Order(LOCAL, f"{LOCAL.name}:{tag}", {"BASE_IMAGE": base, **labels}))
    if "connect" in (arguments.only or ()):
        tag = arguments.tag or content_tag((CONNECT,), also=development_base)
        orders.append(_Order(CONNECT, f"{CONNECT.name}:{tag}", {"BASE_IMAGE": development_base}))
    for image in DEVELOPMENT if arguments.dev else ():
        # Each image has its own tag, so that a change of one does not restart the other servers.
        tag = arguments.tag or content_tag((image,), also=development_base)
        orders.append(_Order(image, f"{image.name}:{tag}", {"BASE_IMAGE": development_base}))
    if arguments.only:
        orders = [order for order in orders if order.image.name.partition("/")[2] in arguments.only]
    if not orders:
        raise BuildError(f"--only {' '.join(arguments.only)}: there is no such image; images of servers need --dev")
    return orders


def _bases(arguments: argparse.Namespace, engine: Engine, *, local: bool) -> tuple[str, str]:
    if arguments.base_image:
        return arguments.base_image, arguments.base_image
    if not local:
        return PULLED_BASE, PULLED_DEVELOPMENT_BASE
    begun = time.monotonic()
    base = material.ensure_base(engine)
    _say(f"{base}  {engine.size_bytes(base) / 1e6:,.0f} MB  {time.monotonic() - begun:.1f} s")
    return base, base


def _prepare(arguments: argparse.Namespace, *, local: bool) -> None:
    begun = time.monotonic()
    only = set(arguments.only or ())
    if "connect" in only:
        material.gather_connect()
    # Neither Kafka Connect nor the servers for development have wheels.
    if local and only != {"connect"}:
        folder = material.fetch_wheels()
        count = len(list(folder.glob("*.whl")))
        _say(f"{count} wheels by their hashes  {time.monotonic() - begun:.1f} s")
    if arguments.dev:
        material.gather_jars()


def _build(arguments: argparse.Namespace) -> None:
    with _engine() as (engine, own):
        local = arguments.local or (own and not arguments.pull)
        with ThreadPoolExecutor(1) as background:  # Both steps mostly wait for the network.
            prepared = background.submit(_prepare, arguments, local=local)
            base, development_base = _bases(arguments, engine, local=local)
            prepared.result()
        orders = _orders(arguments, base, development_base)
        for order in orders:
            begun = time.monotonic()
            if engine.has(order.reference) and not arguments.force:
                _say(f"{order.reference}  exists already")
                continue
            log = CACHE / "logs" / f"{order.image.name.replace('/', '-')}.log"
            engine.build(order.image, order.reference, order.arguments, log)
            size = engine.size_bytes(order.reference) / 1e6
            _say(f"{order.reference}  {size:,.0f} MB  {time.monotonic() - begun:.1f} s")
        references = [order.reference for order in orders]
        if arguments.archive:
            _save(engine, references, arguments.archive)
        archives = _archive(engine, references, prune=not arguments.only) if own else []
        record = {"images": references, "archives": [str(archive) for archive in archives]}
        CACHE.mkdir(parents=True, exist_ok=True)
        (CACHE / "built.json").write_text(json.dumps(record, indent=1) + "\n")


def _archive(engine: Engine, references: list[str], *, prune: bool) -> list[Path]:
    """Save the images of an engine that ends with the build into archives, and return the archives.

    The servers for development have a separate archive, because they seldom change.
    """
    archives = []
    for prefix in ("tidemill/", "tidemill-dev/"):
        group = [reference for reference in references if reference.startswith(prefix)]
        digest = hashlib.sha256(" ".join(group).encode()).hexdigest()[:12]
        archive = CACHE / f"{prefix.rstrip('/')}-{digest}.tar"
        if not group:
            continue
        if not archive.exists():
            _save(engine, group, archive)
        archives.append(archive)
    if prune:
        engine.forget_others(references)
    for former in set(CACHE.glob("tidemill*.tar")) - set(archives) if prune else ():
        former.unlink()
    return archives


def _save(engine: Engine, references: list[str], archive: Path) -> None:
    begun = time.monotonic()
    archive.parent.mkdir(parents=True, exist_ok=True)
    engine.save(references, archive)
    _say(f"{archive}  {archive.stat().st_size / 1e6:,.0f} MB  {time.monotonic() - begun:.1f} s")


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    """Run the program, and return its exit code."""
    arguments = _arguments()
    # SystemExit ends the engine that this program has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        _build(arguments)
    except KeyboardInterrupt:
        return 130
    except (BuildError, RuntimeError) as error:
        print(f"hack/images/build: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
