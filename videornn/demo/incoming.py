"""What a browser sends, in time and in bounds; and who it is that sends."""

from __future__ import annotations

import io
import ipaddress
import socket
import time

IDLE_SECONDS = 30.0  # without a byte from the browser
HEADER_SECONDS = 10.0  # for all that comes before a file
HEADER_BYTES = 2**16


class Incoming(io.RawIOBase):
    """What a browser sends: a header that is neither long nor late, then a file, no part of which comes after a deadline.

    Reading raises TimeoutError after the deadline, which is time.monotonic()'s; writing may wait for IDLE_SECONDS.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._header_bytes: int | None = HEADER_BYTES  # that may still come
        self.deadline = time.monotonic() + HEADER_SECONDS

    def header_is_here(self) -> None:
        """From now on a file comes."""
        self._header_bytes = None

    def readable(self) -> bool:
        """It is there to be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # io gives no other buffers
        """What has come, as soon as something has."""
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
    """Who an address belongs to: whoever has one of IPv6 has 2^64 of them."""
    host = ipaddress.ip_address(address[0].partition("%")[0])
    if isinstance(host, ipaddress.IPv6Address) and host.ipv4_mapped is None:
        return str(ipaddress.ip_network((host, 64), strict=False))
    return str(host)
