"""Read what a browser sends within limits of time and size, and tell clients apart."""

from __future__ import annotations

import io
import ipaddress
import socket
import time

IDLE_SECONDS = 30.0  # without a byte from the browser
HEADER_SECONDS = 10.0  # for all that comes before a file
HEADER_BYTES = 2**16


class Incoming(io.RawIOBase):
    """A browser's request: a header that is neither long nor late, then a file, all of which comes before a deadline.

    Reading raises TimeoutError after the deadline, by time.monotonic(); writing may wait for IDLE_SECONDS.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._header_bytes: int | None = HEADER_BYTES  # bytes of the header that may still come
        self.deadline = time.monotonic() + HEADER_SECONDS

    def header_is_here(self) -> None:
        """Switch from the limits of the header to those of the file."""
        self._header_bytes = None

    def readable(self) -> bool:
        """Return True: the stream can be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # io gives no other buffers
        """Read what has come, waiting for at least one byte."""
        if self._header_bytes is not None and self._header_bytes <= 0:
            raise ConnectionError("the header is too long")
        self._connection.settimeout(max(self.deadline - time.monotonic(), 1e-3))
        try:
            length = self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(IDLE_SECONDS)
        if self._header_bytes is not None:
            self._header_bytes -= length
        return length


def client_of(address: tuple) -> str:
    """Return the client of an address: for IPv6 the network of the first 64 bits, whose 2^64 addresses one client has."""
    host = ipaddress.ip_address(address[0].partition("%")[0])
    if isinstance(host, ipaddress.IPv6Address) and host.ipv4_mapped is None:
        return str(ipaddress.ip_network((host, 64), strict=False))
    return str(host)
