"""An operator that runs as a process."""

from __future__ import annotations

import signal
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Process:
    """A running operator: its log file, and the ports of its status server and its webhook."""

    process: subprocess.Popen[bytes]
    log: Path
    status_port: int
    webhook_port: int

    def ask(self, path: str) -> tuple[int, str]:
        """Return status code and body of a GET from the status server, or 0 and no body without an answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.status_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def leads(self) -> bool:
        """Return whether this operator is the leader."""
        return '"leader": true' in self.ask("/health")[1]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal if the process still runs, wait for its end and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
        return self.process.wait(40.0)
