"""Renewing: a longer lease and new credentials, under streams that run and connections that come."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import pytest

import s2uc
from s2uc import life
from scistream.errors import ScistreamError
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Uid
from tests.support.sessions import Opened, echo, exchange, open_pair
from tests.support.user import Facilities, facilities

BACKENDS = ["stunnel", "haproxy", "nginx"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facilities]:
    with facilities(tmp_path_factory.mktemp("facilities")) as both:
        yield both


class Callers(threading.Thread):
    """Connect again and again, and see that each time data comes back."""

    def __init__(self, session: Opened) -> None:
        super().__init__(daemon=True)
        self.session = session
        self.ending = threading.Event()
        self.served = 0
        self.fault: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.ending.is_set():
                with self.session.connect() as connection:
                    connection.settimeout(30)
                    exchange(connection, b"x" * 1000)
                self.served += 1
        except BaseException as error:
            self.fault = error


def end_of(running: Facilities, uid: str) -> datetime:
    return datetime.fromisoformat(running.user.json("status", uid)["expires_at"])


# Each backend on each side; all pairs with the long runs.
PAIRS = [
    pytest.param(p, c, marks=() if (i + j) % 3 == 1 else pytest.mark.soak)
    for i, p in enumerate(BACKENDS)
    for j, c in enumerate(BACKENDS)
]


@pytest.mark.parametrize(("producers", "consumers"), PAIRS)
def test_streams_and_connections_notice_nothing(running: Facilities, producers: str, consumers: str) -> None:
    with echo() as app, running.aps.client() as p, running.alcf.client() as c:
        session = open_pair(p, c, [str(app.endpoint)], 1, (producers, consumers))
        with session.connect() as stream:
            stream.sendall(b"before")
            assert stream.recv(6, socket.MSG_WAITALL) == b"before"
            callers = Callers(session)
            callers.start()
            for _ in range(2):
                until = running.user.json("renew", session.uid, "--lease", "3h")["expires_at"]
                assert datetime.fromisoformat(until) > datetime.now(UTC) + timedelta(hours=2)
            callers.ending.set()
            callers.join(30)
            assert callers.fault is None
            assert callers.served
            exchange(stream, os.urandom(1 << 20))
        session.release()


def test_connections_succeed_after_the_old_lease(running: Facilities) -> None:
    """The old certificates have expired by then."""
    with echo() as app:
        sides = running.gateways()
        with ExitStack() as stack:
            for lease_s in (3, 9, 27):  # a busy machine may need longer than the first
                try:
                    asked = s2uc.request(*sides, prod_listeners=[str(app.endpoint)], lease_s=lease_s)
                    session = stack.enter_context(asked)
                    first = session.expires_at
                    session.renew(60)
                    break
                except ScistreamError:
                    if lease_s == 27:
                        raise
            assert session.expires_at > first
            time.sleep(max(0.0, (first - datetime.now(UTC)).total_seconds()) + 1)
            listener = session.listeners[0]
            with socket.create_connection((listener.host, listener.port), 30) as connection:
                exchange(connection, b"with the new ones")


def test_a_lease_is_never_shortened(running: Facilities) -> None:
    with echo() as app, running.aps.client() as p, running.alcf.client() as c:
        session = open_pair(p, c, [str(app.endpoint)])
        before = end_of(running, session.uid)
        running.user.json("renew", session.uid, "--lease", "1s")
        assert end_of(running, session.uid) == before
        session.release()


def test_what_cannot_be_renewed(running: Facilities) -> None:
    user = running.user
    assert "not known at" in user.complaint("renew", "nothing", expect=5)
    with running.aps.client() as p:
        p.req(pb.Request(uid="half", role="PROD", num_conn=1, immediate=True))
        assert "both its gateways" in user.complaint("renew", "half", expect=1)
        p.release(pb.Release(uid="half"))
    with echo() as app, running.aps.client() as p, running.alcf.client() as c:
        session = open_pair(p, c, [str(app.endpoint)])
        assert "longer than you get here" in user.complaint("renew", session.uid, "--lease", "900d", expect=2)
        session.release()
        assert "it has ended" in user.complaint("renew", session.uid, expect=1)


def test_at_once(running: Facilities) -> None:
    """Two renewals of one session race; whichever wins, both sides trust each other at the end."""
    with echo() as app, running.aps.client() as p, running.alcf.client() as c:
        session = open_pair(p, c, [str(app.endpoint)])

        async def race() -> None:
            sides = running.gateways()
            await asyncio.gather(*(life.renew(Uid(session.uid), sides, 60) for _ in range(2)), return_exceptions=True)
            await life.renew(Uid(session.uid), sides, 60)

        asyncio.run(race())
        with session.connect() as connection:
            exchange(connection, b"still")
        session.release()
