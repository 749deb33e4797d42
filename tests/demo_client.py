"""Demos for tests, and what a browser sends them."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from videornn.demo import Demo
from videornn.demo.analyst import Network

MAX_BYTES = 10**6


@contextmanager
def demos() -> Iterator[Callable[[Network], Demo]]:
    """Starts demos, which end with the context."""
    started = []

    def start(network: Network) -> Demo:
        demo = Demo(network, host="127.0.0.1", port=0, max_bytes=MAX_BYTES)
        demo.analyst.start()
        threading.Thread(target=demo.serve_forever, args=(0.05,), daemon=True).start()
        started.append(demo)
        return demo

    yield start
    for demo in started:
        demo.shutdown()
        demo.server_close()


def connect(demo: Demo, request: str, body: bytes = b"") -> socket.socket:
    """A connection on which a request is sent; {port} in it is the port of the demo."""
    connection = socket.create_connection(demo.server_address[:2], timeout=300)
    connection.sendall(request.replace("\n", "\r\n").format(port=demo.server_port).encode() + b"\r\n" + body)
    return connection


def answer(connection: socket.socket) -> tuple[int, http.client.HTTPMessage, list[dict]]:
    """Status, headers and lines of JSON."""
    with connection:
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, response.headers, [json.loads(line) for line in response.read().splitlines()]


def post(demo: Demo, body: bytes, name: str = "clip.mp4", headers: str = "") -> socket.socket:
    head = f"POST /predict?name={quote(name)} HTTP/1.1\nHost: 127.0.0.1:{{port}}\nContent-Length: {len(body)}\n{headers}"
    return connect(demo, head, body)


def errors(lines: list[dict]) -> list[str]:
    return [line["error"] for line in lines if "error" in line]


def best(lines: list[dict]) -> str:
    return next(line["top"][0]["class"] for line in lines if "top" in line)


def folder(demo: Demo) -> Path:
    return demo._folder.path


def wait_until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 300
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()
