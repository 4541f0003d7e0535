"""Rounds of the fuzz: a random pipeline with random events and operations, whose answers are compared with the model.

The first partition holds the watermark back, so the timing of processes does not decide which events are late. Its
newest event is called the brake. While events arrive, no window can close. Then the brake moves on, and the round waits
until windows are closed before it sends more events.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from oracle.compare import differences, summary
from oracle.draw_spec import SpecDrawer
from oracle.events import Event, EventDrawer
from oracle.model import Model, Version
from oracle.platform import Running, Stuck
from oracle.queries import answered, draw_queries
from oracle.stage import Stage
from waiting import NotInTime

BASE = 1_774_742_400_000  # 2026-03-29T00:00:00Z, one hour before clocks are put forward in Europe
_MAX_PAGES, _MAX_FILLED = 12, 3_000
_LEADS_MS = (0, 15_000, 600_000)


Made = type[Running] | type[Stage]


class Difference(AssertionError):
    """The platform and the model give different answers."""


@dataclass
class Tally:
    """The numbers of rounds, events, queries, compared cells and operations."""

    rounds: int = 0
    cells: int = 0
    events: int = 0
    queries: int = 0
    done: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        done = ", ".join(f"{number} {what}" for what, number in sorted(self.done.items()))
        return f"{self.rounds} rounds, {self.events} events, {self.queries} queries, {self.cells} cells; {done}"


class Round:
    """One round.

    Args:
        servers: Kafka, Postgres and Redis.
        seed: the seed of everything except the timing.
        folder: the folder of the round, which is kept if the round fails.
        tally: the numbers to which the round adds its own.
        avoid: parts to leave out: those of SpecDrawer, and `fill` (fill=zero).
        made: the class of the pipeline on which the round is played.
    """

    def __init__(self, servers: Any, seed: int, folder: Path, tally: Tally, avoid: frozenset[str], made: Made) -> None:
        self._seed, self._folder, self._tally, self._avoid = seed, folder, tally, avoid
        self._rnd = random.Random(seed)
        self._specs = SpecDrawer(self._rnd, avoid)
        self._document = self._specs.document(f"f{seed}")
        self._spec = self._document["spec"]
        self._model = Model(self._spec)
        source = self._spec["source"]
        self._events = EventDrawer(self._rnd, source["fields"], source["topic"]["partitions"])
        self._brake = BASE + self._rnd.randrange(3_600_000)
        self._did: list[str] = []
        self._started = time.monotonic()
        self._running = made(servers, folder, self._document)

    def play(self) -> None:
        """Play the whole round.

        Raises:
            Difference: if an answer differs from the model. The message has the seed.
            NotInTime: if a condition is not true in time.
            Stuck: if the round cannot continue.
        """
        try:
            self._begin()
            for _ in range(self._rnd.randint(5, 9)):
                if self._rnd.random() < 0.5:
                    self._rnd.choice(self._operations())()
                self._on_time()
                if self._rnd.random() < 0.6:
                    self._late()
                self._advance()
                self._compare(few=self._rnd.random() < 0.7)
            self._compare(few=False)
        except (Difference, Stuck, NotInTime) as error:
            self._keep(error)
            after = "; ".join(self._did)
            raise type(error)(f"seed {self._seed}: {error}\n  after: {after}\n  see {self._folder}") from error
        finally:
            self._running.close()
        self._tally.rounds += 1
        shutil.rmtree(self._folder, ignore_errors=True)

    def _operations(self) -> list[Callable[[], None]]:
        replays = [self._replay] if self._running.replays else []
        return [self._edit, self._edit, self._edit, self._kill, self._reset, *replays]

    def _note(self, what: str, kind: str) -> None:
        self._did.append(f"{time.monotonic() - self._started:.0f} s: {what}")
        self._tally.done[kind] += 1

    # --- events ---

    def _begin(self) -> None:
        """Send three events to each partition, which the watermark needs."""
        partitions = range(self._spec["source"]["topic"]["partitions"])
        self._take([self._events.draw(self._brake, partition) for partition in partitions for _ in range(3)])

    def _on_time(self) -> None:
        """Send events that are not late, invalid events and repetitions. A processor may be killed between them."""
        rnd, events = self._rnd, list[Event]()
        for _ in range(rnd.choice([10, 60, 300])):
            partition = rnd.randrange(self._events.partitions)
            low, high = self._brake - rnd.choice([3_000, 70_000, 300_000]), self._brake
            at = rnd.randint(low, high + (rnd.choice(_LEADS_MS) if partition else 0))
            at = at // 1_000 * 1_000 if rnd.random() < 0.4 else at
            if self._model.is_late(at):
                continue
            events.append(self._events.draw(at, partition))
            if rnd.random() < 0.05:
                events.append(self._events.again(events[-1]))
            if rnd.random() < 0.06:
                events.append(self._events.broken())
        if rnd.random() < 0.15:
            half = len(events) // 2
            self._take(events[:half], wait=False)
            self._kill()
            self._take(events[half:])
        else:
            self._take(events)

    def _late(self) -> None:
        """Send late events whose lateness does not depend on each other."""
        rnd, events = self._rnd, list[Event]()
        for _ in range(rnd.choice([3, 15, 40])):
            at = rnd.randint(max(BASE, self._brake - rnd.choice([60_000, 900_000, 9_000_000])), self._brake)
            if not self._model.is_late(at):
                continue
            event = self._events.draw(at)
            if self._model.doubtful(event, events) or any(self._model.doubtful(other, [event]) for other in events):
                self._events.take_back(event)
                continue
            events.append(event)
        self._note(f"{len(events)} late", "late batches")
        self._take(events)

    def _advance(self) -> None:
        """Move the brake on, and send events at its time to all partitions behind it."""
        self._brake += self._rnd.choice([1_000, 20_000, 61_000, 400_000, 3_600_000])
        behind = [p for p, times in self._model.times.items() if max(times) < self._brake]
        self._take([self._events.draw(self._brake, partition) for partition in behind])

    def _take(self, events: list[Event], *, wait: bool = True) -> None:
        self._tally.events += len(events)
        self._running.send(events)
        self._model.take(events)
        self._model.settle()
        if wait:
            self._await()

    def _await(self) -> None:
        self._running.await_counted(len(self._model.seen))
        closed = {(version.name, version.number): version.closed for version in self._model.versions.values()}
        self._running.await_closed(closed)

    # --- operations ---

    def _edit(self) -> None:
        what, spec = self._specs.edit(self._spec)
        self._note(what, "edits")
        self._spec = spec
        self._model.apply(spec)
        self._running.edit(spec, {name: version.number for name, version in self._model.versions.items()})
        self._same_versions()
        self._await()

    def _kill(self) -> None:
        if self._running.kill(self._rnd):
            self._note("kill", "kills")

    def _replay(self) -> None:
        names = [name for name in self._model.versions if self._rnd.random() < 0.7] or list(self._model.versions)[:1]
        self._note(f"replay of {', '.join(names)}", "replays")
        self._running.replay(names, self._on_time if self._rnd.random() < 0.5 else lambda: None)
        self._model.replay(names, self._running.versions())
        self._same_versions()
        self._await()

    def _reset(self) -> None:
        self._note("the consumer group is reset", "resets")
        self._running.reset_group()

    def _same_versions(self) -> None:
        expected = {name: version.number for name, version in self._model.versions.items()}
        if self._running.versions() != expected:
            raise Difference(f"versions are {self._running.versions()}, expected {expected}")

    # --- comparison ---

    def _compare(self, *, few: bool) -> None:
        for version in self._model.versions.values():
            for drawn in draw_queries(self._rnd, version, few=few):
                if drawn.fill == "zero" and "fill" in self._avoid:
                    continue
                expected = answered(self._model, version, drawn)
                if drawn.fill != "none" and len(expected) > _MAX_FILLED:
                    continue
                query = replace(drawn, limit=max(drawn.limit, len(expected) // _MAX_PAGES))
                rows = self._running.rows(version.name, query)
                cells, found = differences(self._model, version, query, expected, rows)
                self._tally.cells += cells
                self._tally.queries += 1
                if found:
                    text = f"{version.name} version {version.number}, {query.parameters()}: {len(found)} differences"
                    raise Difference(f"{text}\n{summary(found)}")
            self._compare_late(version)
        self._compare_counts()

    def _compare_late(self, version: Version) -> None:
        query = f"SELECT late_dead, late_dropped FROM {{s}}._aggregations WHERE name = '{version.name}'"
        (found,) = self._running.sql(f"{query} AND version = {version.number}")
        if found != (version.late["dead"], version.late["dropped"]):
            raise Difference(f"{version.name}: late (dead letters, dropped) is {found}, expected {dict(version.late)}")

    def _compare_counts(self) -> None:
        model = self._model
        text = "SELECT sum(consumed)::bigint, sum(filtered)::bigint, sum(invalid)::bigint FROM {s}._offsets"
        (found,) = self._running.sql(f"{text} WHERE reader = 'live'")
        invalid = sum(event.values is None for event in model.seen)
        if found != (len(model.seen), model.filtered, invalid):
            raise Difference(f"consumed, filtered, invalid: {found}, not {(len(model.seen), model.filtered, invalid)}")
        letters = set(self._running.sql('SELECT partition, "offset", aggregation, reason FROM {s}._dead_letters'))
        if letters != model.dead:
            only, lacking = sorted(letters - model.dead), sorted(model.dead - letters)
            raise Difference(f"dead letters: not expected {only[:5]}, missing {lacking[:5]}")

    def _keep(self, error: Exception) -> None:
        """Write the pipeline, the error and the events to the folder of the round."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "pipeline.json").write_text(json.dumps({**self._document, "spec": self._spec}, indent=1))
        (self._folder / "error.txt").write_text(f"seed {self._seed}\n{error}\n" + "\n".join(self._did) + "\n")
        with (self._folder / "events.ndjson").open("wb") as file:
            for event in self._model.seen:
                file.write(b"%d/%d %s\n" % (event.partition, event.offset, event.raw))


def play_until(
    servers: Any,
    folder: Path,
    *,
    seed: int,
    seconds: float,
    avoid: frozenset[str],
    say: Callable[[str], None],
    made: Made = Running,
) -> tuple[Tally, list[str]]:
    """Play rounds with increasing seeds until no further round fits into the time.

    Return the numbers of all rounds, and the errors of those that failed.
    """
    tally, errors, end, longest = Tally(), list[str](), time.monotonic() + seconds, 0.0
    while (started := time.monotonic()) + longest < end:
        try:
            Round(servers, seed, folder / str(seed), tally, avoid, made).play()
            say(f"seed {seed}: right, {time.monotonic() - started:.1f} s; {tally}")
        except (Difference, Stuck, NotInTime) as error:
            errors.append(str(error))
            say(f"WRONG {error}")
        longest = max(longest, time.monotonic() - started)
        seed += 1
    return tally, errors
