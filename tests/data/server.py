"""A web server of this machine that serves a folder in ranges, as well or as badly as it is told.

Files are served as they lie there: one that is written anew has another tag, one that is removed is answered with 404.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

#: What may be wrong with an answer.
FAULTS = {
    "503": "the server is overloaded",
    "429": "too many requests",
    "403": "not allowed",
    "hang": "no answer at all",
    "slow": "the header, and then no more",
    "cut": "the connection ends within the body",
    "short": "fewer bytes than asked for, and a length that fits them",
    "long": "more bytes than asked for",
    "length": "a length that is larger than the body, which the connection outlasts",
    "whole": "the whole file, whatever was asked for",
    "range": "another range than was asked for",
    "close": "the connection ends without an answer",
}


class Server:
    """Serves `folder` at `url`, from its begin to `close`; a context.

    `fail(kind, every)` lets every so-manieth answer be wrong in that way (see FAULTS), `fail()` none; `die(seconds)`
    lets none come for a while. `asked` lists the requests: path, range (first, last) or None, status sent, 0 for none.
    """

    def __init__(self, folder):
        self.folder, self.asked = Path(folder), []
        self._fault, self._every, self._dead_until = None, 0, 0.0
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"owner": self}))
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def fail(self, kind=None, every=1):
        assert kind is None or kind in FAULTS
        self._fault, self._every = kind, every

    def die(self, seconds):
        self._dead_until = time.monotonic() + seconds

    def fault(self):
        """The fault of the answer that comes next."""
        with self._lock:
            number = len(self.asked) + 1
            self.asked.append(None)
            if time.monotonic() < self._dead_until:
                return number - 1, "close"
            return number - 1, self._fault if self._fault and number % self._every == 0 else None

    def wait(self):
        self._closing.wait(60)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Server

    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        number, fault = self.owner.fault()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        asked = tuple(map(int, wanted.groups())) if wanted else None
        status = self.answer(asked, fault, body)
        self.owner.asked[number] = (self.path, asked, status)

    def answer(self, asked, fault, body):
        path = self.owner.folder / self.path.lstrip("/")
        if fault == "close":
            self.close_connection = True
            return 0
        if fault == "hang":
            self.owner.wait()
            self.close_connection = True
            return 0
        if fault in ("503", "429", "403"):
            return self.head(int(fault), {"Content-Length": "0"})
        if not path.is_file():
            return self.head(404, {"Content-Length": "0"})
        content, state = path.read_bytes(), path.stat()
        headers = {"ETag": f'"{state.st_mtime_ns:x}-{state.st_size:x}"', "Accept-Ranges": "bytes"}
        if asked is None or fault == "whole":
            return self.head(200, {**headers, "Content-Length": len(content)}, content if body else b"")
        shift = fault == "range"
        first, last = asked[0] + shift, min(asked[1] + shift, len(content) - 1)
        if first > last:
            return self.head(416, {**headers, "Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
        data = content[first : last + 1]
        data = {"short": data[:-1], "long": data + b"more"}.get(fault, data)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        headers["Content-Length"] = len(data) + (fault == "length")
        if fault in ("cut", "slow"):
            data = data[: len(data) // 2]
        self.head(206, headers, data if body else b"")
        if fault in ("slow", "length"):
            self.owner.wait()
        self.close_connection |= fault in ("cut", "slow", "length")
        return 206

    def head(self, status, headers, data=b""):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)
        return status


if __name__ == "__main__":
    import sys

    with Server(sys.argv[1]) as served:
        print(served.url, flush=True)
        while os.getppid() != 1:
            time.sleep(1)
