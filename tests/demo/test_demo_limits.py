"""What one client of the demo may hold: places, connections, time."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from demo_client import answer, best, connect, demos, folder, post, wait_until
from demo_networks import Light

from videornn.demo import Demo, incoming, server

UPLOAD = "POST /predict?name=a.mp4 HTTP/1.1\nHost: localhost\nContent-Length: 1000\n"


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with demos() as start:
        yield start(Light("runs/x/checkpoints/best.pt"))


def page_is_there(demo: Demo, source: str = "127.0.0.1") -> bool:
    with socket.create_connection(demo.server_address[:2], timeout=20, source_address=(source, 0)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return connection.recv(15) == b"HTTP/1.1 200 OK"


def test_a_file_that_trickles_in_gives_its_place_back(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "RATE_SECONDS", 0.3)
    start = time.monotonic()
    with connect(demo, UPLOAD) as connection:
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.05):
                connection.sendall(b"x")

        threading.Thread(target=trickle, daemon=True).start()
        status, _, (line,) = answer(connection)
        stop.set()
    assert status == 408 and line["error"] == "a.mp4 comes too slowly, or no longer"
    assert time.monotonic() - start < 15 and wait_until(lambda: not list(folder(demo).iterdir()))


def test_a_file_that_comes_in_bursts_is_waited_for(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "RATE_SECONDS", 0.05)
    monkeypatch.setattr(server, "LEAST_RATE", 0)
    connection = connect(demo, UPLOAD)
    for _ in range(4):
        time.sleep(0.2)
        connection.sendall(b"x" * 250)
    assert best(answer(connection)[2]).endswith("video.mp4 1000")


def test_one_client_does_not_take_all_places(demo: Demo) -> None:
    held = [connect(demo, UPLOAD, b"1") for _ in range(server.MAX_ARRIVING)]
    assert wait_until(lambda: len(list(folder(demo).iterdir())) == server.MAX_ARRIVING)
    status, _, (line,) = answer(connect(demo, UPLOAD, b"1"))
    assert status == 429 and line["error"].startswith("2 videos from you are arriving already")
    assert page_is_there(demo)
    for connection in held:
        connection.close()
    assert wait_until(lambda: not list(folder(demo).iterdir()))
    assert answer(post(demo, b"12345"))[0] == 200


def test_headers_that_are_slow_or_long_end_their_connection_alone(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "HEADER_SECONDS", 0.3)
    with socket.create_connection(demo.server_address[:2], timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        assert connection.recv(100) == b""  # it would have waited for 30 s, and again after each byte
    monkeypatch.setattr(incoming, "HEADER_SECONDS", 20.0)
    with socket.create_connection(demo.server_address[:2], timeout=20) as connection, suppress(ConnectionError):
        connection.sendall(b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: %b\r\n" % (i, b"x" * 60_000) for i in range(50)))
        assert connection.recv(100)[:12] not in (b"HTTP/1.1 200", b"HTTP/1.1 403")
    assert page_is_there(demo)


def test_who_holds_many_connections_gets_no_more_and_others_do(demo: Demo) -> None:
    if sys.platform != "linux":
        pytest.skip("needs a second address of this machine")
    held = [socket.create_connection(demo.server_address[:2], timeout=20) for _ in range(server.MAX_CONNECTIONS)]
    assert wait_until(lambda: sum(demo._connections.values()) == server.MAX_CONNECTIONS)
    with suppress(ConnectionError):
        assert not page_is_there(demo)
    assert page_is_there(demo, "127.0.0.2")
    for connection in held:
        connection.close()
    assert wait_until(lambda: not demo._connections) and page_is_there(demo)
