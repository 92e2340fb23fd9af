"""A small HTTP server around the handler of a flat folder, for tests, load tests and a look at home.

    python tests/handler_http.py FOLDER [--port 8000]

POST / with a JSON body {"inputs", "parameters"}, or with a picture as the body (Content-Type image/*) and the
parameters in the query, as Inference Endpoints take them; GET /health. The status of a refusal is that in its "error".
It listens on 127.0.0.1 alone, and it is no server for the open: no TLS, no users, a thread for each connection.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

MAX_BODY_BYTES = 64 * 2**20
SECONDS_TO_WAIT = 30.0  # for the next byte of a client


def load_handler(folder: str | Path, **settings: Any) -> Any:
    """The EndpointHandler of a flat folder, its file loaded by its path, as Inference Endpoints do."""
    spec = importlib.util.spec_from_file_location("handler", Path(folder) / "handler.py")
    if spec is None or spec.loader is None:
        raise ValueError(f"{folder}/handler.py cannot be loaded; give a folder that stage_flat_folder wrote.")
    module = importlib.util.module_from_spec(spec)
    sys.modules["handler"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(folder), **settings)


def refusal(status: int, message: str) -> dict[str, Any]:
    """What the handler would say, of a request that does not come so far."""
    return {"error": {"status": status, "item": "request", "message": message}}


class Conversation(BaseHTTPRequestHandler):
    """One connection; `answer` is set by `serving`."""

    protocol_version = "HTTP/1.1"
    timeout = SECONDS_TO_WAIT

    def answer(self, data: Any) -> Any:
        """What the handler gives; `serving` puts it in place."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Answers /health."""
        known = urlsplit(self.path).path in ("/", "/health")
        self._send({"state": "ok"} if known else refusal(404, "there is only / and /health here."))

    def do_POST(self) -> None:
        """Answers a request to the handler."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or int(length) > MAX_BODY_BYTES:
            self.close_connection = True  # what follows stays unread
            status = 413 if length.isdigit() else 411
            self._send(
                refusal(status, f"the body has {length or 'no stated number of'} bytes; at most {MAX_BODY_BYTES}.")
            )
            return
        body = self.rfile.read(int(length))
        if self.headers.get("Content-Type", "").startswith("image/"):
            self._send(self.answer({"inputs": body, "parameters": dict(parse_qsl(urlsplit(self.path).query))}))
            return
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:
            self._send(refusal(400, f"the body is no JSON ({str(error)[:100]})."))
            return
        self._send(self.answer(data))

    def _send(self, answer: Any) -> None:
        """None; sends the answer, which must be strict JSON."""
        content = json.dumps(answer, allow_nan=False).encode()
        error = answer.get("error") if isinstance(answer, dict) else None
        self.send_response(error["status"] if error else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """None; nothing is logged, for requests hold pictures of patients."""


@contextmanager
def serving(handler: Any, port: int = 0) -> Iterator[str]:
    """The address of a server that answers by the handler, until the block is left; port 0 takes a free one."""
    conversation = type("Conversation", (Conversation,), {"answer": lambda self, data: handler(data)})
    server = ThreadingHTTPServer(("127.0.0.1", port), conversation)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    """None; serves a folder until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="a flat folder, for instance runs/quickstart/final")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    with serving(load_handler(arguments.folder), arguments.port) as address:
        sys.stdout.write(f"{address}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
