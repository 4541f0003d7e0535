"""Runs `up` and `send` in one process, for `tidemill init --run`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from tidemill_contract.files import read_text
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_operator.cli import send, up
from tidemill_operator.cli.init import read_options
from tidemill_operator.cli.main import EXIT_ERROR, build_parser
from tidemill_operator.event_files.content import EventFileError
from tidemill_operator.event_files.event_file import EventFile
from tidemill_operator.laptop.pipeline_files import PipelineFiles
from tidemill_operator.laptop.ports import WantedPorts
from tidemill_operator.sending.client import Client
from tidemill_operator.sending.progress import Progress
from tidemill_operator.sending.sender import Sender, SendOptions

_POLL_SECONDS = 0.2
_END_SECONDS = 10.0


def run_and_send(args: argparse.Namespace, output: Path, name: str, path: Path | None) -> int:
    """Run the pipeline until a signal arrives.

    Send the file as soon as the pipeline is ready.

    Args:
        args: the arguments of `init`.
        output: the file with the pipeline.
        name: the pipeline's name.
        path: the file with the events, or None if the events are already in the topic.
    """
    with tempfile.TemporaryDirectory(prefix="tidemill-init-") as folder:
        ready_file = Path(folder) / "ready.json"
        arguments = ["up", "-f", str(output), "--data-dir", str(args.data_dir), "--ready-file", str(ready_file)]
        arguments += WantedPorts.of(args).arguments()
        send_thread = _SendThread(args, output, name, path, ready_file)
        send_thread.start()
        try:
            code = up.run(build_parser().parse_args(arguments))
        finally:
            send_thread.stop()
    return code or send_thread.code


class _SendThread(threading.Thread):
    def __init__(self, args: argparse.Namespace, output: Path, name: str, path: Path | None, ready_file: Path) -> None:
        super().__init__(name="send", daemon=True)
        self._args, self._output, self._name, self._path, self._ready_file = args, output, name, path, ready_file
        self._stopped = threading.Event()
        self._sender: Sender | None = None
        self.code = 0

    def run(self) -> None:
        while not self._ready_file.exists():
            if self._stopped.wait(_POLL_SECONDS):
                return
        report = json.loads(read_text(self._ready_file))
        if self._name not in report["pipelines"]:
            # `up` has printed why the pipeline is not ready. The user can correct the pipeline and then send the
            # events.
            send = f"tidemill send -f {self._args.source}"
            self._say(f"nothing was sent, because {self._name} is not ready; correct it, then run: {send}")
            self.code = EXIT_ERROR
            return
        endpoints = report["pipelines"][self._name]
        if self._path is not None:
            self._send(self._path, endpoints)
        self._say(f"dashboard: {endpoints.get('api', '')}/ (press Ctrl-C to stop; the data is kept)")

    def stop(self) -> None:
        self._stopped.set()
        if self._sender is not None:
            self._sender.stop()
        self.join(_END_SECONDS)

    def _send(self, path: Path, endpoints: dict[str, Any]) -> None:
        content = PipelineFiles([self._output]).poll()
        documents = content.documents if content is not None else {}
        (document,) = documents.values()
        fields = AnalyticsPipeline.model_validate(document).spec.source.fields
        options = SendOptions(path=path, pipeline=self._name, fields=fields)
        client = Client(endpoints["ingest"], self._name)
        try:
            with EventFile(path, read_options(self._args)) as file:
                self._sender = Sender(file, client, options, Progress(lambda: file.fraction_read))
                self.code = send.send(file, client, options, api=endpoints.get("api", ""), sender=self._sender)
        except EventFileError as error:
            self._say(f"tidemill send: {error}")
            self.code = EXIT_ERROR
        finally:
            client.close()

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
