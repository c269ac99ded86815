"""A session that is reserved, given to functions elsewhere, and opened, with what can go wrong in between."""

from __future__ import annotations

import pickle
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import pytest

import s2uc
from examples.remote_functions import analyse, take
from scistream.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from scistream.machine import State
from scistream.vocabulary import Uid
from tests.support.sessions import Echo, echo
from tests.support.user import Facilities, facilities, known


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facilities]:
    """The producer's gateway gives two connections a session."""
    with facilities(tmp_path_factory.mktemp("facilities"), SCISTREAM_LIMITS__NUM_CONN="2") as both:
        yield both


@pytest.fixture
def producer() -> Iterator[Echo]:
    with echo() as server:
        yield server


def _answers(session: s2uc.Session) -> bool:
    with socket.create_connection((session.listeners[0].host, session.listeners[0].port), 10) as connection:
        connection.sendall(b"x" * 1000)
        return connection.recv(1000, socket.MSG_WAITALL) == b"x" * 1000


def test_two_functions_in_processes_of_their_own(running: Facilities) -> None:
    """The consumer's is started first, and both know nothing but their key."""
    spawned = get_context("spawn")
    with (
        ProcessPoolExecutor(1, spawned) as instrument,
        ProcessPoolExecutor(1, spawned) as compute,
        s2uc.reserve(*running.gateways()) as session,
    ):
        assert session.state is State.RESERVED
        found = compute.submit(analyse, session.consumer_key)
        taken = instrument.submit(take, session.producer_key, "127.0.0.1")
        session.open(hello_timeout=60)
        assert session.state is State.ACTIVE
        assert found.result(60) == taken.result(60)
    assert running.left() == {}


def test_the_producer_is_named_at_last(running: Facilities, producer: Echo) -> None:
    aps, alcf = running.gateways()
    with s2uc.reserve(aps, alcf, num_conn=2) as session:
        reserved = session.listeners
        session.open([str(producer.endpoint)])
        session.open([str(producer.endpoint)])
        assert session.listeners == reserved
        assert session.producer.targets == (producer.endpoint,)
        assert _answers(session)
    with pytest.raises(FailedPrecondition, match="ask for another"):
        session.open([producer.endpoint])
    assert running.left() == {}


def test_two_threads_open_at_once(running: Facilities, producer: Echo) -> None:
    with s2uc.reserve(*running.gateways()) as session, ThreadPoolExecutor(4) as executor:
        for opening in [executor.submit(session.open, [producer.endpoint]) for _ in range(4)]:
            opening.result(30)
        assert _answers(session)
    assert running.left() == {}


def test_the_same_reservation_again(running: Facilities, producer: Echo) -> None:
    """Another one of that uid has keys of its own, so it is another session's; the first goes on."""
    with s2uc.reserve(*running.gateways(), uid="again-1") as session:
        with pytest.raises(AlreadyExists):
            s2uc.reserve(*running.gateways(), uid="again-1")
        session.open([producer.endpoint])
        assert _answers(session)
    assert running.left() == {}


def test_opening_can_be_tried_again(running: Facilities, producer: Echo) -> None:
    with s2uc.reserve(*running.gateways()) as session:
        with pytest.raises(DeadlineExceeded, match="has not said Hello within"):
            session.open(hello_timeout=0.2)
        with pytest.raises(InvalidArgument, match="too many for num_conn 1"):
            session.open(["127.0.0.1:1", "127.0.0.1:2"])
        with pytest.raises(InvalidArgument, match="no port"):
            session.open(["nowhere"])
        assert session.state is State.RESERVED
        session.open([producer.endpoint])
        assert _answers(session)
    assert running.left() == {}


def test_a_refused_reservation_leaves_nothing(running: Facilities) -> None:
    with pytest.raises(ResourceExhausted):
        s2uc.reserve(*running.gateways(), num_conn=3)
    assert running.left() == {}


def test_who_waits_hears_of_the_end(running: Facilities) -> None:
    """A failure inside the block ends the session, and the functions elsewhere end with it."""
    with ThreadPoolExecutor(1) as executor:
        with suppress(ZeroDivisionError), s2uc.reserve(*running.gateways()) as session:
            waiting = executor.submit(session.consumer_key.wait, timeout=60)
            time.sleep(0.3)  # until it waits
            raise ZeroDivisionError
        with pytest.raises((FailedPrecondition, NotFound)):
            waiting.result(20)
    assert running.left() == {}


def test_opening_is_cancelled_by_a_release_from_another_thread(running: Facilities) -> None:
    with s2uc.reserve(*running.gateways()) as session:
        threading.Timer(0.3, session.release).start()
        with pytest.raises(FailedPrecondition, match="has ended"):
            session.open(hello_timeout=60)
    assert running.left() == {}


def test_keys(running: Facilities, producer: Echo, tmp_path: Path) -> None:
    aps, alcf = running.gateways()
    certified = s2uc.Gateway("aps", aps.endpoint, aps.ca_pem, aps.token)
    with s2uc.request(certified, alcf, prod_listeners=[producer.endpoint]) as session:
        key = session.consumer_key
        travelled = pickle.dumps(key)
        assert alcf.token.encode() not in travelled
        assert key.gateway.token not in repr(key)
        assert pickle.loads(travelled).wait(timeout=20).listeners == session.listeners
        key.save(tmp_path / "key")
        assert s2uc.AppKey.load(tmp_path / "key").wait(timeout=20).listeners == session.listeners
        with pytest.raises(FailedPrecondition):
            session.producer_key.wait(["127.0.0.1:9"], timeout=20)  # it leads elsewhere already
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(InvalidArgument, match="others can read it"):
        s2uc.AppKey.load(tmp_path / "key")
    with pytest.raises((FailedPrecondition, NotFound)):
        key.wait(timeout=20)


def test_a_wait_ends_in_time(running: Facilities) -> None:
    with (
        s2uc.reserve(*running.gateways()) as session,
        pytest.raises(DeadlineExceeded, match="is not open after"),
    ):
        session.consumer_key.wait(timeout=0.3)


def test_a_forked_process_is_told(running: Facilities) -> None:
    """It would hang otherwise: the thread that does the work is not there, and gRPC is not."""
    with (
        s2uc.reserve(*running.gateways()) as session,
        ProcessPoolExecutor(1, get_context("fork")) as forked,
        pytest.raises(FailedPrecondition, match="spawn"),
    ):
        forked.submit(session.consumer_key.wait, timeout=5).result(30)


async def test_the_failure_of_the_block_is_told_first(running: Facilities, producer: Echo) -> None:
    """A release that fails, too, is a note to it; alone it is raised."""
    session = await s2uc.aio.request(*running.gateways(), prod_listeners=[producer.endpoint])
    uid, session.uid = session.uid, Uid("nobody-knows")
    with pytest.raises(ZeroDivisionError) as told:
        async with session:
            raise ZeroDivisionError
    assert "could not be released" in told.value.__notes__[0]
    with pytest.raises(NotFound):
        async with session:
            pass
    session.uid = uid
    await session.release()
    assert running.left() == {}


def test_the_keys_of_a_user_with_a_certificate_do_not_carry_it(running: Facilities) -> None:
    gateway = known("aps", running.aps)
    certified = s2uc.Gateway("aps", gateway.endpoint, gateway.ca_pem, "token", b"certificate", b"private key")
    found = certified.for_application("the-key")
    assert (found.token, found.certificate, found.key) == ("the-key", None, None)
