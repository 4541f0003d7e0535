"""Disturbs processors while events flow: kills, freezes, scales and resets their consumer group.

One seed determines every choice, so that a run can be repeated. The machine's timing still differs.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from demo.runtime import DemoError, Runtime, until

SESSION_TIMEOUT_MS = 6_000
KILLS = 22
_PAUSE_SECONDS = (0.5, 4.0)
_SCALE_SECONDS = 60.0
_RESET_SECONDS = 60.0
# Kills precede and follow each other fault. At the second freeze, other replicas can take the partitions over.
SCRIPT: Sequence[str] = (
    *["kill"] * 5,
    "freeze",
    *["kill"] * 2,
    "scale 3",
    *["kill"] * 4,
    "freeze",
    *["kill"] * 3,
    "scale 1",
    *["kill"] * 2,
    "reset",
    *["kill"] * 3,
    "scale 2",
    *["kill"] * 3,
    "scale 1",
)


class Chaos:
    """Carries out the actions of a script in a separate thread.

    Args:
        runtime: The disturbed platform.
        seed: The seed of all random choices.
        say: The function that prints each action.
    """

    def __init__(
        self, runtime: Runtime, *, seed: int, say: Callable[[str], None], script: Sequence[str] = SCRIPT
    ) -> None:
        self._runtime = runtime
        # A fixed seed is intended.
        self._random = random.Random(seed)
        self._say = say
        self._script = script
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="chaos", daemon=True)
        self.done = threading.Event()
        self.counts: Counter[str] = Counter()

    def start(self) -> None:
        """Start the script."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the end of the script.

        Raises:
            DemoError: An action failed.
        """
        self._thread.join()
        if self._error is not None:
            raise DemoError(f"chaos failed: {self._error}") from self._error

    def _run(self) -> None:
        try:
            for action in self._script:
                time.sleep(self._random.uniform(*_PAUSE_SECONDS))
                self._do(action)
        except BaseException as error:  # join() raises the error in the main thread.
            self._error = error
        finally:
            self.done.set()

    def _do(self, action: str) -> None:
        verb, _, argument = action.partition(" ")
        match verb:
            case "kill":
                self._kill()
            case "freeze":
                self._freeze()
            case "scale":
                self._scale(int(argument))
            case "reset":
                self._reset()
            case _:
                raise ValueError(f"script: unknown action {action!r}; use kill, freeze, scale N or reset")
        self.counts[verb] += 1

    def _victim(self) -> tuple[str, int]:
        running = until(self._alive, seconds=60, what="a processor runs")
        return self._random.choice(sorted(running.items()))

    def _alive(self) -> dict[str, int]:
        """Return the running processors. The report may lag behind a kill, so the process itself is checked."""
        with suppress(FileNotFoundError):
            return {name: pid for name, pid in self._runtime.processors().items() if _is_processor(pid)}
        return {}

    def _kill(self) -> None:
        name, pid = self._victim()
        self._say(f"SIGKILL {name} (pid {pid})")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not _is_processor(pid), seconds=10, what=f"process {pid} has ended", pause_seconds=0.02)

    def _freeze(self) -> None:
        name, pid = self._victim()
        seconds = SESSION_TIMEOUT_MS / 1000 + self._random.uniform(2, 4)
        self._say(f"SIGSTOP {name} (pid {pid}) for {seconds:.1f} s, then SIGCONT")
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _scale(self, replicas: int) -> None:
        self._say(f"processor.replicas: {replicas}")

        def change(spec: dict[str, Any]) -> None:
            spec.setdefault("processor", {})["replicas"] = replicas

        self._runtime.edit(change)
        until(lambda: len(self._alive()) == replicas, seconds=_SCALE_SECONDS, what=f"{replicas} processors run")

    def _reset(self) -> None:
        self._say("suspend, consumer group back to the beginning, resume")
        self._runtime.edit(lambda spec: spec.update(suspend=True))
        until(lambda: not self._alive(), seconds=_SCALE_SECONDS, what="no processor runs")
        # Killed members stay in the group until their session expires.
        until(
            lambda: reset_group(self._runtime),
            seconds=_RESET_SECONDS,
            what="the group's offsets are reset",
            pause_seconds=1,
        )
        self._runtime.edit(lambda spec: spec.update(suspend=False))
        until(self._alive, seconds=_SCALE_SECONDS, what="a processor runs again")


def reset_group(runtime: Runtime) -> bool:
    """Set the group's offsets of all partitions to 0. Return False if the group still has members."""
    admin = AdminClient({"bootstrap.servers": runtime.kafka})
    topic = f"{runtime.namespace}.{runtime.name}.events"
    group = f"tidemill.{runtime.namespace}.{runtime.name}"
    partitions = admin.list_topics(topic, timeout=10).topics[topic].partitions
    wanted = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, partition, 0) for partition in partitions])
    try:
        answer = admin.alter_consumer_group_offsets([wanted])[group].result(15)
    except KafkaException:
        return False
    return all(partition.error is None for partition in answer.topic_partitions)


def _is_processor(pid: int) -> bool:
    """Return whether a process is alive and a processor. A zombie is not, because it has no command line."""
    try:
        return b"tidemill_processor" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
