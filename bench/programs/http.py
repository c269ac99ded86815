"""HTTP/1.1 with one kept connection: frames as answers to GET.

`python -m bench.programs.http ADDRESS PORT` is the server: `/N` answers N bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from bench.place import Place
from bench.programs.base import SIZES, module, pings, rate_of, rates, served
from bench.traffic import Address

_BODIES = {size: bytes(size) for size in SIZES}


class _Frames(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:
        body = _BODIES[int(self.path[1:])]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        return


@contextmanager
def serve(place: Place) -> Iterator[list[Address]]:
    """Run the server."""
    host = place.producer.address
    with served(place, "http", lambda port: module("http", host, port)) as addresses:
        yield addresses


def measure(addresses: list[Address], seconds: float) -> dict[tuple[str, str, str], float]:
    """Get frames of each size."""
    connection = HTTPConnection(*addresses[0], timeout=30)

    def get(size: int) -> int:
        connection.request("GET", f"/{size}")
        return len(connection.getresponse().read())

    try:
        found = pings(lambda: get(512), seconds / 2)
        for size, label in SIZES.items():
            found |= rates(f"GET, {label}", *rate_of(lambda size=size: get(size), seconds / 2))
    finally:
        connection.close()
    return found


if __name__ == "__main__":
    ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), _Frames).serve_forever()
