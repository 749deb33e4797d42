"""Serve a page on this machine: drop a video, see its classes, its timeline and where the attention looks.

The page posts the file to /predict. The answer is lines of JSON, each sent as soon as it is known, so that the classes
appear long before the pictures are drawn. Nothing is fetched later, so uploads need no names, and a file is removed when
its answer ends.
"""

from __future__ import annotations

import errno
import io
import ipaddress
import json
import os
import secrets
import signal
import socket
import socketserver
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, urlsplit

from videornn.demo.analyst import Analyst, Network
from videornn.demo.incoming import Incoming, client_of
from videornn.demo.private_folder import PrivateFolder
from videornn.distributed.signals import handled_by
from videornn.errors import UserError
from videornn.system.console import complain, say

PAGE = Path(__file__).with_name("page.html")
MAX_VIDEOS = 4  # that arrive, wait or are analysed at a time
MAX_ARRIVING = 2  # videos of one client at a time
MAX_CONNECTIONS = 16  # of one client; a page needs one or two
MAX_ALL_CONNECTIONS = 128  # each has a thread
UPLOAD_SECONDS = 600.0  # for a whole file
LEAST_RATE = 8000  # bytes per second of an arriving file, on average over RATE_SECONDS
RATE_SECONDS = 10.0
NOT_KNOWN = "{name} is not named like a video: .mp4, .mov, .avi, .mkv, .webm, .mts and the like are known"
TOO_LARGE = "{name} has {size} MB, and this demo takes {limit} MB: cut the video, or start the demo with a larger --max-mb"
HEADERS = {
    "Connection": "close",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Request = socket.socket | tuple[bytes, socket.socket]


class Refusal(UserError):
    """Raised to refuse a request, with an HTTP status."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Demo(ThreadingHTTPServer):
    """The server: it listens at once, and answers while it serves. Closing it ends the worker and removes all files.

    Raises:
        UserError: it cannot listen there.
    """

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # on Windows two servers would share a port

    def __init__(self, network: Network, *, host: str, port: int, max_bytes: int) -> None:
        self.analyst = Analyst(network)
        self.max_bytes = max_bytes
        self.names = {"localhost", host.lower(), socket.gethostname().lower()}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._folder = PrivateFolder()
        self._places = threading.Semaphore(MAX_VIDEOS)
        self._lock = threading.Lock()
        self._connections: Counter[str] = Counter()  # of each client
        self._arriving: Counter[str] = Counter()
        self._closing = False
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            reason = "the port is taken" if error.errno == errno.EADDRINUSE else error.strerror
            raise UserError(f"cannot serve at --host {host} --port {port}: {reason}; --port 0 takes a free one") from error

    @property
    def url(self) -> str:
        """Address of the page."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    @property
    def checkpoint(self) -> str:
        """Last parts of the checkpoint's path."""
        return "/".join(Path(self.analyst.checkpoint).parts[-3:])

    @contextmanager
    def place(self) -> Iterator[Path]:
        """Make a folder for one more video; raises Refusal if there are MAX_VIDEOS."""
        if self._closing or not self._places.acquire(blocking=False):
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_VIDEOS} videos are here already: try again in a minute")
        try:
            with tempfile.TemporaryDirectory(dir=self._folder.path, ignore_cleanup_errors=True) as folder:
                yield Path(folder)
        finally:
            self._places.release()

    @contextmanager
    def arrival(self, client: str) -> Iterator[None]:
        """Count an arriving video of a client; raises Refusal if MAX_ARRIVING already arrive."""
        if not self._take(self._arriving, client, MAX_ARRIVING):
            sentence = f"{MAX_ARRIVING} videos from you are arriving already: send this one when one of them is here"
            raise Refusal(HTTPStatus.TOO_MANY_REQUESTS, sentence)
        try:
            yield
        finally:
            self._give_back(self._arriving, client)

    def verify_request(self, request: Request, client_address: tuple) -> bool:
        """Return whether to accept a connection; a client with many, even by slow headers, must not block the others."""
        with self._lock:
            total = sum(self._connections.values())
        return total < MAX_ALL_CONNECTIONS and self._take(self._connections, client_of(client_address), MAX_CONNECTIONS)

    def process_request_thread(self, request: Request, client_address: tuple) -> None:
        """Answer an accepted connection in its own thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._give_back(self._connections, client_of(client_address))

    def _take(self, held: Counter[str], client: str, most: int) -> bool:
        with self._lock:
            free = held[client] < most
            held[client] += free
            return free

    def _give_back(self, held: Counter[str], client: str) -> None:
        with self._lock:
            held[client] -= 1
            if not held[client]:
                del held[client]

    def server_bind(self) -> None:
        """Bind without looking up the name of this machine, for which HTTPServer may ask the network."""
        socketserver.TCPServer.server_bind(self)
        self.server_port = self.server_address[1]

    def server_close(self) -> None:
        """Close the socket, end the worker, remove all files."""
        self._closing = True
        super().server_close()
        self.analyst.stop()
        self._folder.remove()

    def handle_error(self, request: Request, client_address: object) -> None:
        """Print an error, unless the browser has merely gone away or this server is closing."""
        if not self._closing and not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """The handler of one request, with which its connection ends."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "videornn", ""
    server: Demo

    def setup(self) -> None:
        """Set up a reader with limits of time and size."""
        super().setup()
        self._incoming = Incoming(self.connection)
        self.rfile = io.BufferedReader(self._incoming)

    def do_GET(self) -> None:
        self._answer(self._page)

    def do_POST(self) -> None:
        self._answer(self._predict)

    def _answer(self, work: Callable[[], None]) -> None:
        self._incoming.header_is_here()
        try:
            self._check_sender()
            work()
        except Refusal as refusal:
            self._send(refusal.status, "application/json", json.dumps({"error": str(refusal)}).encode())
            self._swallow()

    def _check_sender(self) -> None:
        """Raise Refusal if this request comes from a page of another site.

        The owner of a site can make its DNS name lead here (rebinding), which gives its page this origin; an address cannot
        lead elsewhere. In Origin browsers tell which page posts.
        """
        host, origin = self.headers.get("Host", "").lower(), self.headers.get("Origin")
        if not _is_address(_host_name(host)) and _host_name(host) not in self.server.names:
            raise Refusal(HTTPStatus.FORBIDDEN, f"this demo is at {self.server.url}, not at {host[:100]!r}")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            raise Refusal(HTTPStatus.FORBIDDEN, f"a page of {origin[:100]!r} may not use this demo")

    def _page(self) -> None:
        if self.path.partition("?")[0] != "/":
            raise Refusal(HTTPStatus.NOT_FOUND, "there is one page here, /")
        nonce = secrets.token_urlsafe(16)
        settings = {
            "checkpoint": self.server.checkpoint,
            "num_classes": self.server.analyst.num_classes,
            "max_bytes": self.server.max_bytes,
            "not_known": NOT_KNOWN,
            "too_large": TOO_LARGE,
            "suffixes": self.server.analyst.suffixes,
        }
        text = PAGE.read_text(encoding="utf-8").replace("{{nonce}}", nonce)
        text = text.replace("{{settings}}", json.dumps(settings).replace("<", "\\u003c"))
        policy = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src blob: data:; "
        policy += "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", text.encode(), {"Content-Security-Policy": policy})

    def _predict(self) -> None:
        path, _, query = self.path.partition("?")
        if path != "/predict":
            raise Refusal(HTTPStatus.NOT_FOUND, "videos are posted to /predict?name=FILE")
        name = "".join(c if c.isprintable() else "?" for c in parse_qs(query).get("name", [""])[0])[-100:]
        suffix = os.path.splitext(name)[1].lower()
        known = self.server.analyst.suffixes
        if suffix not in known:
            sentence = NOT_KNOWN.format(name=name or "a file without a name")
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, sentence)
        length = self._length(name)
        with self.server.place() as folder:
            video = folder / f"video{suffix}"  # nothing but the suffix of the name becomes part of a path
            with self.server.arrival(client_of(self.client_address)):
                self._receive(video, name, length)
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "application/x-ndjson")
            self.end_headers()
            with self.server.analyst.turn(self._tell):
                self._analyse(video, name)

    def _length(self, name: str) -> int:
        """Return Content-Length; raises Refusal if it is missing or too large."""
        text = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (text.isascii() and text.isdigit()):
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "a video is sent as it is, with its size in Content-Length")
        length = int(text[:20])
        if length > self.server.max_bytes:
            size, limit = -(-length // 10**6), self.server.max_bytes // 10**6  # rounded up: never "1 MB, takes 1 MB"
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, TOO_LARGE.format(name=name, size=size, limit=limit))
        return length

    def _receive(self, video: Path, name: str, length: int) -> None:
        """Write the body to a file, at most length bytes; raises Refusal, or ConnectionError if the sender goes away."""
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        end = time.monotonic() + UPLOAD_SECONDS
        try:
            with open(video, "xb") as file:
                while length:
                    left = self._receive_some(file, name, length)
                    if left and (time.monotonic() > end or length - left < LEAST_RATE * RATE_SECONDS):
                        raise Refusal(HTTPStatus.REQUEST_TIMEOUT, f"{name} comes too slowly, or no longer")
                    length = left
        except ConnectionError:
            raise
        except OSError as error:
            reason = f"{name} cannot be kept while it is looked at: {error.strerror}"
            raise Refusal(HTTPStatus.INSUFFICIENT_STORAGE, reason) from error

    def _receive_some(self, file: BinaryIO, name: str, length: int) -> int:
        """Write what arrives of the body within RATE_SECONDS; return how much is left."""
        self._incoming.deadline = time.monotonic() + RATE_SECONDS
        with suppress(TimeoutError):
            while length and time.monotonic() < self._incoming.deadline:
                part = self.rfile.read1(min(length, 2**20))
                if not part:
                    raise ConnectionError(f"{name}: the rest did not come")
                length -= file.write(part)
        return length

    def _analyse(self, video: Path, name: str) -> None:
        start = time.monotonic()
        for line in self.server.analyst.analyse(video, name):
            if "error" in line:
                line["error"] = line["error"].replace(video.name, name)
            self._tell(line)
            if "top" in line:
                best = line["top"][0]
                say(f"{name}: {best['class']} {100 * best['score']:.1f} % after {time.monotonic() - start:.1f} s")

    def _tell(self, line: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(line).encode() + b"\n")

    def _send(self, status: HTTPStatus, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def _swallow(self) -> None:
        """Discard what still arrives for a while: a browser that cannot finish sending may not show the answer."""
        end = time.monotonic() + 5
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1)
            while time.monotonic() < end and self.connection.recv(2**16):
                pass

    def handle_expect_100(self) -> bool:
        """Do not ask for the body yet: it is asked for when everything else is checked."""
        return True

    def end_headers(self) -> None:
        for key, value in HEADERS.items():
            self.send_header(key, value)
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Log no requests."""


def serve(
    checkpoint: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_megabytes: int = 200,
    window: float | None = None,
) -> None:
    """Serve the page until Ctrl-C or SIGTERM; window: seconds of the timeline's windows, by default those of a clip.

    Raises:
        UserError: the checkpoint is none, or the port is taken.
    """
    try:
        with (
            handled_by(signal.default_int_handler, (signal.SIGTERM,)),
            Demo(Network(str(checkpoint), window), host=host, port=port, max_bytes=max_megabytes * 10**6) as demo,
        ):
            demo.analyst.start()
            if not _is_loopback(host):
                complain(f"--host {host}: all who can reach this machine can send videos and see what the network says")
            say(f"{demo.checkpoint} ({demo.analyst.num_classes} classes) is at {demo.url}; Ctrl-C ends it")
            demo.serve_forever()
    except KeyboardInterrupt:
        say("ended; the videos that were sent are removed")


def _host_name(host: str) -> str:
    """Return the name in a Host header, without the port; empty if it cannot be read."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
