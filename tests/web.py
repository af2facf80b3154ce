"""A web server on loopback that serves a folder, says what it was asked, and can misbehave."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Web:
    """`url` is the folder's; `asked` has (path, Range) of every request in order."""

    url: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    knows_ranges: bool = True
    failures: dict[str, list[int]] = field(default_factory=dict)
    """Statuses to answer with, by path, before the file itself."""
    cut_after: dict[str, int] = field(default_factory=dict)
    """Bytes after which an answer for a path breaks off, once."""


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, web: Web, *arguments: Any, **more: Any) -> None:
        self._web = web
        super().__init__(*arguments, **more)

    def do_GET(self) -> None:
        name = self.path.partition("?")[0]
        self._web.asked.append((name, self.headers.get("Range", "")))
        if self._web.failures.get(name):
            self.send_error(self._web.failures[name].pop(0))
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            super().do_GET()
            return
        self._send(name, path.read_bytes(), path.stat().st_mtime)

    def _send(self, name: str, content: bytes, modified: float) -> None:
        whole, first, last, status = len(content), 0, len(content) - 1, 200
        asked = self.headers.get("Range", "")
        if asked and self._web.knows_ranges:
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first, last, status = int(start), min(int(end or last), last), 206
            if first > last:
                self.send_error(416)
                return
        self.send_response(status)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Last-Modified", self.date_time_string(int(modified)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{whole}")
        self.end_headers()
        body = content[first : last + 1]
        cut = self._web.cut_after.get(name, whole)
        if len(body) > cut:
            del self._web.cut_after[name]
            self.wfile.write(body[:cut])
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    web = Web()
    handler = partial(_Handler, web, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    web.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
