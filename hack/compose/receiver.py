"""Receives alerts in place of an Alertmanager that is not installed: `python receiver.py ADDRESS PORT`."""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Receiver(BaseHTTPRequestHandler):
    """Accepts all alerts and discards them."""

    def do_POST(self) -> None:
        """Accept alerts from Prometheus."""
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()


if __name__ == "__main__":
    ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Receiver).serve_forever()
