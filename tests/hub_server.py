"""A Hub on 127.0.0.1 that can break off, lie about lengths, send wrong bytes and answer with errors."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server holds and how it behaves.

    Attributes:
        files: Content by path.
        status: Answer everything with this status.
        error_code: The Hub's own name of the error.
        get_status: Answer GET alone with this status.
        break_after: Bytes of each answer that come before the connection is closed; None sends all.
        breaks: How many answers break off.
        announce: Size given in answer to HEAD, in place of the truth.
        length: Content-Length of GET, in place of the truth.
        send: Bytes sent in place of the content.
        etag: ETag, in place of the digest.
        ranges: Whether Range is honoured.
        token: Authorization needed.
        commit: The commit that every revision stands for; None says nothing.
        stalled: Keep a broken answer's connection open, silent, until this is set.
        requests: (method, path, Range) of what was asked.
        url: Where it listens.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 0
    error_code: str = ""
    get_status: int = 0
    break_after: int | None = None
    breaks: int = 1 << 30
    announce: int | None = None
    length: int | None = None
    send: bytes | None = None
    etag: str | None = None
    ranges: bool = True
    token: str | None = None
    commit: str | None = COMMIT
    stalled: threading.Event | None = None
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""

    def gets(self):
        return [entry for entry in self.requests if entry[0] == "GET"]


def git_name(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve():
    """A running `Hub`."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self._answer(body=False)

        def do_GET(self):
            self._answer(body=True)

        def _fail(self, status, code=""):
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _answer(self, *, body):
            wanted = self.headers.get("Range")
            hub.requests.append((self.command, self.path, wanted))
            if hub.status:
                return self._fail(hub.status, hub.error_code)
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._fail(401)
            if self.path.startswith("/api/models/"):
                listing = [
                    {"type": "file", "path": name, "size": len(content), "oid": git_name(content)}
                    for name, content in hub.files.items()
                ]
                raw = json.dumps(listing).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                return self.wfile.write(raw)
            name = re.sub(r"\?.*", "", self.path).split("/resolve/", 1)[-1].split("/", 1)[-1]
            if name not in hub.files:
                return self._fail(404, "EntryNotFound")
            if body and hub.get_status:
                return self._fail(hub.get_status)
            return self._send(hub.files[name], wanted, body=body)

        def _send(self, content, wanted, *, body):
            etag = hub.etag or hashlib.sha256(content).hexdigest()
            sent = content if hub.send is None or not body else hub.send
            start = 0
            if wanted and hub.ranges:
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
                if start >= len(sent):
                    return self._fail(416)
            self.send_response(206 if start else 200)
            if hub.commit:
                self.send_header("X-Repo-Commit", hub.commit)
            self.send_header("ETag", f'"{etag}"')
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(sent) - 1}/{len(sent)}")
            length = len(sent) - start if body else len(content)
            if not body and hub.announce is not None:
                length = hub.announce
            if body and hub.length is not None:
                length = hub.length
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if not body:
                return None
            piece = sent[start:]
            if hub.break_after is not None and hub.breaks > 0:
                hub.breaks -= 1
                piece = piece[: hub.break_after]
            self.wfile.write(piece)
            self.wfile.flush()
            if hub.stalled is not None and len(piece) != length:
                hub.stalled.wait(10)
            if len(piece) != length:
                self.close_connection = True
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
