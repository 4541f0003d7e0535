"""Tests of the Python stage, which applies a user's function to each event before the processors.

The tests run and kill a real stage and a real processor, on a real Kafka and Postgres.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from bench import Bench, MakeBench
from tidemill_contract import names
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_contract.stage_records import STAGE_RUNNING
from tidemill_operator.actuators.kafka.offsets import OffsetReader
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer.figures import Observation
from tidemill_operator.observer.observer import Observer

pytestmark = pytest.mark.integration

BASE = 1_700_000_000_000 // 60_000 * 60_000
STAGE = "tidemill_processor.stage"
ENRICH = """
SHOPS = {0: "north", 1: "south"}


def enrich(event):
    number = event["number"]
    if number % 5 == 0:
        return None
    if number % 11 == 0:
        raise ValueError(f"no shop {number}")
    if number % 13 == 0:
        return number
    event["shop"] = SHOPS[number % 2]
    event["double"] = 2 * number
    return [event, {**event, "shop": "copy"}] if number % 7 == 0 else event
"""


def config(name: str, timeout: str = "30s", **source: Any) -> PipelineConfig:
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 3},
                "fields": [
                    {"name": "ts", "type": "timestamp", "required": True},
                    {"name": "shop", "type": "string", "required": True},
                    {"name": "double", "type": "integer", "required": True},
                    {"name": "origin", "type": "string", "from": "header"},
                ],
                "eventTime": {"field": "ts", "idleTimeout": "10m", "maxDisorder": "1s"},
                **source,
            },
            "transform": {
                "python": {"configMap": "enrich", "file": "enrich.py", "function": "enrich", "timeout": timeout}
            },
            "aggregations": [
                {
                    "name": "by_shop",
                    "groupBy": ["shop"],
                    "window": {"type": "tumbling", "size": "1h"},
                    "metrics": [
                        {"name": "n", "function": "count"},
                        {"name": "total", "function": "sum", "field": "double"},
                        {"name": "known", "function": "count", "field": "origin"},
                    ],
                }
            ],
        }
    )
    refs = (AggregationRef(name="by_shop"),)
    return PipelineConfig(namespace="default", name=name, generation=1, spec=spec, aggregations=refs)


def record(number: int) -> bytes:
    return json.dumps({"ts": BASE + number % 50_000, "number": number}).encode()


def expected(numbers: Iterator[int] | range) -> tuple[dict[str, tuple[int, int]], Counter[str]]:
    """Return counts and totals by shop, and the number of dead letters by the first words of their detail."""
    shops: dict[str, tuple[int, int]] = {}
    dead: Counter[str] = Counter()

    def count(shop: str, double: int) -> None:
        n, total = shops.get(shop, (0, 0))
        shops[shop] = (n + 1, total + double)

    for number in numbers:
        if number % 5 == 0:
            continue
        if number % 11 == 0:
            dead["ValueError"] += 1
        elif number % 13 == 0:
            dead["enrich of enrich.py returned int"] += 1
        else:
            count(("north", "south")[number % 2], 2 * number)
            if number % 7 == 0:
                count("copy", 2 * number)
    return shops, dead


def start_stage(bench: Bench, text: str | None = ENRICH, **environment: str) -> subprocess.Popen[bytes]:
    folder = bench.folder / "stage"
    folder.mkdir(exist_ok=True)
    if text is not None:
        (folder / "enrich.py").write_text(text)
    return bench.start(module=STAGE, TIDEMILL_STAGE_DIR=str(folder), **environment)


def shops(bench: Bench) -> dict[str, tuple[int, int]]:
    rows = bench.query("SELECT shop, sum(_count)::bigint, sum(_sum_double)::bigint FROM {s}.by_shop_v1 GROUP BY shop")
    return {shop: (int(n), int(total)) for shop, n, total in rows}


def letters(bench: Bench) -> Counter[str]:
    rows = bench.query("SELECT reason, detail FROM {s}._dead_letters")
    return Counter(f"{reason}: {(detail or '').split(':')[0].split(';')[0]}" for reason, detail in rows)


def note(bench: Bench) -> str:
    """Return the note that the stage stores for the operator, or "" while Kafka loads the group's coordinator."""
    group = names.consumer_group(bench.config.namespace, bench.config.name, "stage-state")
    consumer = Consumer({"bootstrap.servers": bench.servers.kafka, "group.id": group})
    try:
        (stored,) = consumer.committed([TopicPartition(bench.config.events_topic, 0)], timeout=10)
        return str(stored.metadata or "").rstrip("\0")
    except KafkaException as refused:
        if refused.args[0].retriable() or refused.args[0].code() == KafkaError.NOT_COORDINATOR:
            return ""
        raise
    finally:
        consumer.close()


@pytest.mark.matrix
def test_counts_are_exact_while_stage_and_processor_are_killed(make_bench: MakeBench) -> None:
    bench = make_bench(config("staged"))
    numbers = itertools.count(1)
    stage, processor = start_stage(bench), bench.start()
    sent = 0

    def send(many: int) -> None:
        nonlocal sent
        bench.produce([record(next(numbers)) for _ in range(many)], headers=[("origin", b"here")])
        sent += many

    send(2_000)
    bench.eventually(
        lambda: sum(n for n, _ in shops(bench).values()) > 100, seconds=60, what="the first events are counted"
    )
    for round_ in range(3):
        send(3_000)
        time.sleep(0.4 * (round_ + 1))  # The kills hit different moments of a transaction.
        stage.kill()
        stage.wait()
        send(500)
        processor.kill()
        processor.wait()
        stage, processor = start_stage(bench, None), bench.start()
    send(1_000)
    right, dead = expected(range(1, sent + 1))
    bench.eventually(lambda: shops(bench) == right, seconds=120, what=lambda: f"{shops(bench)} is {right}")
    bench.eventually(lambda: bench.health()["lag"] == 0, seconds=30, what="the processor has no lag")
    health = bench.health(-2)
    assert (health["status"], health["lag"]) == ("healthy", 0)
    assert letters(bench) == {f"transform_failed: {begin}": n for begin, n in dead.items()}
    assert bench.query("SELECT sum(_n_origin) = sum(_count) FROM {s}.by_shop_v1") == [(True,)]


def detail(bench: Bench, index: int) -> str:
    """Return the detail about the function in /health of the stage."""
    return str(bench.health(index).get("dependencies", {}).get("function", {}).get("detail", ""))


def test_the_stage_reports_a_file_that_cannot_be_imported_and_loads_edited_files(make_bench: MakeBench) -> None:
    """No event is lost. The operator's observer reads the reason, and its lag includes the events before the stage."""
    bench = make_bench(config("mended"))
    key = Key("default", "mended", "")
    observations: dict[Key, Observation] = {}
    notes: list[Any] = []
    log, postgres = OffsetReader(bench.servers.kafka), bench.servers.postgres
    observer = Observer(log, postgres, observations.__setitem__, progress=lambda *arguments: notes.append(arguments[3]))
    observer.watch(key, bench.config.schema_name, bench.config.read_topic, bench.config.events_topic)

    def lag_and_note() -> tuple[int, str]:
        observer.measure()
        figures = observations[key].figures
        assert figures is not None, observations[key].fault
        return figures.lag, str(notes[-1]) if isinstance(notes[-1], TidemillError) else ""

    start_stage(bench, "import nothing_here\n" + ENRICH)
    bench.start()
    bench.produce([record(number) for number in range(1, 101)])
    bench.eventually(lambda: "nothing_here" in detail(bench, 0), what="health names the failed import")
    assert (bench.health(0)["status"], bench.consumed()) == ("unhealthy", 0)
    bench.eventually(lambda: "nothing_here" in note(bench), what="the stage notes the reason for the operator")
    bench.eventually(
        lambda: bench.health(1).get("lag") == 100, what="the processor's lag includes the events before the stage"
    )
    lag, reason = lag_and_note()
    assert lag == 100
    assert reason.startswith(
        "the Python stage waits: enrich.py cannot be imported: ModuleNotFoundError: No module named"
    )

    (bench.folder / "stage" / "enrich.py").write_text(ENRICH)
    right, dead = expected(range(1, 101))
    bench.eventually(lambda: shops(bench) == right, what=lambda: f"{shops(bench)} is {right}")
    assert sum(letters(bench).values()) == dead.total()
    bench.eventually(lambda: note(bench) == STAGE_RUNNING, what="the stage notes that the function runs")
    bench.eventually(lambda: lag_and_note() == (0, ""), what="the observer measures no lag")

    (bench.folder / "stage" / "enrich.py").write_text(ENRICH.replace("north", "west"))
    bench.eventually(
        lambda: bench.health(0).get("lag") == 0 and loads(bench) == 2, what="the stage has loaded the edited file"
    )
    bench.produce([record(2)])
    bench.eventually(lambda: "west" in shops(bench), what="the edited function is used")


def loads(bench: Bench) -> int:
    """Return how often the stage has loaded the function."""
    return (bench.folder / f"{STAGE}-0.log").read_text().count("INFO tidemill_processor.stage: enrich of enrich.py is")


HANGS = """
import os
import re


def enrich(event):
    number = event["number"]
    if number == 21:
        re.match("(a+)+$", "a" * 64 + "b")  # Holds Python's global lock for years.
    if number == 33:
        os._exit(7)
    return {"ts": event["ts"], "shop": "north", "double": 2 * number}
"""


@pytest.mark.matrix
def test_an_event_from_which_the_function_never_returns_becomes_a_dead_letter(make_bench: MakeBench) -> None:
    """All other events count exactly once, although their transactions are repeated."""
    bench = make_bench(config("hung", timeout="1s"))
    start_stage(bench, HANGS)
    bench.start()
    bench.produce([record(number) for number in range(60)])
    name, call = bench.config.events_topic, "enrich of enrich.py ran for 1 s on"
    reason = bench.eventually(
        lambda: text if call in (text := note(bench)) else None,
        seconds=60,
        what="the stage notes the reason for the operator",
        retry_on=(KafkaException,),  # Kafka has not loaded the coordinator of the group yet.
    )
    assert re.match(rf"{call} {name}/0@7 \(enrich.py, line 9\); attempt [123] of 3; ", reason), reason
    bench.eventually(
        lambda: sum(letters(bench).values()) == 2, seconds=120, what=lambda: f"two dead letters: {letters(bench)}"
    )
    bench.eventually(lambda: shops(bench) == {"north": (58, 2 * (sum(range(60)) - 54))}, what=lambda: f"{shops(bench)}")
    assert set(letters(bench)) == {
        f"transform_failed: {call} {name}/0@7 (enrich.py, line 9), as in 2 attempts before",
        f"transform_failed: enrich of enrich.py ended its process (exit status 7) on {name}/0@11, as in 2 attempts"
        " before",
    }
    bench.eventually(lambda: bench.health(0).get("status") == "healthy", seconds=30, what="the stage is healthy again")
    bench.eventually(lambda: note(bench) == STAGE_RUNNING, what="the stage notes that the function runs")
    assert "tidemill_stage_ended_calls_total 6.0" in bench.metrics(0)


ENDS = """
import os


def enrich(event):
    if event["number"] in (0, 3):
        os._exit(7)
    return {"ts": event["ts"], "shop": "north", "double": 2 * event["number"]}
"""


@pytest.mark.matrix
def test_two_events_that_end_the_process_become_dead_letters(make_bench: MakeBench) -> None:
    """Each event gets three attempts, because the stage commits right after it has given up an event.

    Both events are in partition 0.
    """
    bench = make_bench(config("ended", timeout="1s"))
    start_stage(bench, ENDS)
    bench.start()
    bench.produce([record(number) for number in range(60)])
    right = {"north": (58, 2 * (sum(range(60)) - 3))}
    bench.eventually(lambda: shops(bench) == right, seconds=60, what=lambda: f"{shops(bench)} is {right}")
    assert sum(letters(bench).values()) == 2
    assert "tidemill_stage_ended_calls_total 6.0" in bench.metrics(0)


def test_the_stage_keeps_its_positions_after_its_group_was_deleted_or_set_back(make_bench: MakeBench) -> None:
    """The stage finds its positions in the records that it has written.

    Kafka deletes the positions of a group without members after a week, and tools can set them back.
    """
    bench = make_bench(config("forgotten", topic={"partitions": 3, "startFrom": "latest"}))
    bench.produce([record(number) for number in range(1, 51)])
    stage, _ = start_stage(bench), bench.start()
    bench.eventually(lambda: bench.health(0).get("lag") == 0, what="the stage starts at the end of the topic")
    bench.produce([record(number) for number in range(51, 101)])
    right, _ = expected(range(51, 101))
    bench.eventually(lambda: shops(bench) == right, what=lambda: f"{shops(bench)} is {right}")
    stage.terminate()
    assert stage.wait(30) == 0
    group = names.consumer_group(bench.config.namespace, bench.config.name, "stage")
    kafka = AdminClient({"bootstrap.servers": bench.servers.kafka})
    bench.eventually(lambda: _deleted(kafka, group), what="the group is deleted")
    bench.produce([record(number) for number in range(101, 151)])
    stage = start_stage(bench, None)
    right, _ = expected(range(51, 151))
    bench.eventually(lambda: shops(bench) == right, what=lambda: f"{shops(bench)} is {right}")
    bench.eventually(lambda: bench.health(-1).get("lag") == 0, what="the stage has no lag")
    assert shops(bench) == right

    stage.terminate()
    assert stage.wait(30) == 0
    bench.eventually(lambda: _set_back(kafka, group, bench.config.events_topic), what="the group is set back")
    bench.produce([record(number) for number in range(151, 201)])
    start_stage(bench, None)
    right, _ = expected(range(51, 201))
    bench.eventually(lambda: bench.health(-1).get("lag") == 0, what="the stage has read all events")
    bench.eventually(lambda: bench.health(1).get("lag") == 0, what="the processor has no lag")
    bench.eventually(lambda: shops(bench) == right, what=lambda: f"{shops(bench)} is {right}")


def _set_back(kafka: AdminClient, group: str, topic: str) -> bool:
    offsets = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, number, 0) for number in range(3)])
    try:
        changed = kafka.alter_consumer_group_offsets([offsets])[group].result(20)
    except KafkaException:  # The group still has a member.
        return False
    return all(place.error is None for place in changed.topic_partitions)


def _deleted(kafka: AdminClient, group: str) -> bool:
    try:
        kafka.delete_consumer_groups([group])[group].result(20)
    except KafkaException as error:
        return bool(error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND)
    return True
