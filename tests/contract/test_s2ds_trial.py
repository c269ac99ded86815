"""What a data server says of its tunnels' legs, and what its proxies printed, on every backend."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from s2cs.s2ds import procfs
from s2cs.s2ds.contract import LegCheck, LegKind, Printed
from s2cs.s2ds.local import LocalDataServer
from s2cs.s2ds.logs import KEPT_LINES, KEPT_WIDTH, Book
from s2cs.s2ds.trial import Trial
from scistream.errors import NotFound, ResourceExhausted
from scistream.vocabulary import Endpoint, Role
from tests.support.ports import ports
from tests.support.tunnels import FLAVOURS, Session, application, calling, config, context, flavour, local


class App:
    """ProdApp, which counts who comes."""

    def __init__(self) -> None:
        self.came = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came += 1
        while data := await reader.read(65536):
            writer.write(data)


@asynccontextmanager
async def gateways(directory: Path, name: str) -> AsyncIterator[LocalDataServer]:
    """Run one data server that stands for both gateways."""
    with ports(20) as range_:
        async with local(config(directory, range_, flavour(name))) as server:
            yield server


def open_to(pids: Iterable[int]) -> list[tuple[str, int]]:
    """Whom processes are connected with."""
    inodes = frozenset(inode for pid in pids for inode in procfs.sockets(pid))
    return [peer for _, peer in procfs.connections(inodes) if peer is not None]


def of(checks: tuple[LegCheck, ...], kind: LegKind) -> list[LegCheck]:
    return [check for check in checks if check.kind is kind]


@pytest.mark.parametrize("name", FLAVOURS)
async def test_each_leg_is_tried_and_streams_are_left_alone(tmp_path: Path, name: str) -> None:
    app, session = App(), Session()
    async with gateways(tmp_path, name) as server, application(app.handle) as target:
        prod, cons = session.spec(Role.PROD, 2), session.spec(Role.CONS, 2)
        wan, lan = await server.reserve(prod), await server.reserve(cons)
        to_app = session.bridge(wan, Role.PROD, target)
        to_wan = session.bridge(lan, Role.CONS, *wan.listeners)
        await server.start(prod.id, to_app)
        await server.start(cons.id, to_wan)

        found = await server.verify(prod.id, to_app) + await server.verify(cons.id, to_wan)
        assert [check.fault for check in found] == [""] * 9
        assert {check.address for check in of(found, LegKind.LISTENER)} == {*wan.listeners, *lan.listeners}
        for check in of(found, LegKind.HANDSHAKE):
            assert check.tls_version == "TLSv1.3"
            assert check.tls_cipher.startswith("TLS_")
            assert check.certificate == to_app.credentials.certificate.der
            assert not check.note
        while any(open_to(status.pids) for status in await server.list()):
            await asyncio.sleep(0.05)  # a proxy may be opening yet what was asked for
        async with calling(target) as last:
            assert (
                await last.ask(b"whoever came before was counted before") == b"whoever came before was counted before"
            )
        came = app.came
        assert came <= 4  # this, one by the producer's gateway, and one through each listener

        found = await server.verify(prod.id, to_app, passive=True) + await server.verify(cons.id, to_wan, passive=True)
        assert [check.fault for check in found] == [""] * 9
        async with calling(lan.listeners[0]) as one, calling(lan.listeners[1]) as other:
            for caller in (one, other):
                assert await caller.ask(b"a frame") == b"a frame"
            assert app.came == came + 2
            found = await server.verify(prod.id, to_app) + await server.verify(cons.id, to_wan)
            assert [check.fault for check in found] == [""] * 9
            tried = of(found, LegKind.APPLICATION) + of(found, LegKind.HANDSHAKE)
            assert {check.note for check in tried} == {"a running stream shows it"}
            assert await one.ask(b"another") == b"another"
            await asyncio.sleep(0.3)
            assert app.came == came + 2
            async with asyncio.timeout(20):
                while (traffic := (await server.list(cons.id))[0].traffic).open != 2:  # it may be half a second old
                    await asyncio.sleep(0.05)
            assert traffic.total == 2  # what is tried is nobody's traffic here

        for id in (prod.id, cons.id):
            printed = await server.logs(id, KEPT_LINES)
            assert len(printed.lines) == printed.count
            assert printed.lines or id == cons.id  # HAProxy tells of a connection when that has ended
            assert (await server.logs(id, 1)).lines == printed.lines[-1:]
            assert not any("PRIVATE" in line for line in printed.lines)
            await server.stop(id, cut=True)
            assert (await server.logs(id, KEPT_LINES)).lines[: len(printed.lines)] == printed.lines
        assert await server.logs("never-was", 5) == Printed()
        with pytest.raises(NotFound):
            await server.verify(cons.id, to_wan)


async def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    """Nobody listens, another session answers, and a gateway that lets in everybody."""
    app, session, other = App(), Session(), Session()
    leaf, key = session.leaf(Role.PROD)
    lax = context(Role.PROD, leaf, key, leaf)
    lax.verify_mode = ssl.CERT_NONE
    open_to_all = await asyncio.start_server(app.handle, "127.0.0.1", 0, ssl=lax)
    lax_port = open_to_all.sockets[0].getsockname()[1]
    async with gateways(tmp_path, "haproxy") as server, application(app.handle) as target, open_to_all:
        prod, cons = other.spec(Role.PROD), session.spec(Role.CONS, 4)
        wan, lan = await server.reserve(prod), await server.reserve(cons)
        nobody, anybody = Endpoint("127.0.0.1", 1), Endpoint("127.0.0.1", lax_port)
        away = other.bridge(wan, Role.PROD, nobody)
        astray = session.bridge(lan, Role.CONS, nobody, wan.listeners[0], target, anybody)
        await server.start(prod.id, away)
        await server.start(cons.id, astray)

        (app_leg,) = of(await server.verify(prod.id, away), LegKind.APPLICATION)
        assert app_leg.fault == "connection refused; start the application, or have it listen there"

        found = await asyncio.wait_for(server.verify(cons.id, astray), 20)
        shakes = {check.address: check for check in of(found, LegKind.HANDSHAKE)}
        assert shakes[nobody].fault.startswith("connection refused; a firewall")
        stranger = shakes[wan.listeners[0]]
        assert stranger.fault.startswith("who answers there is not this session's other gateway")
        assert stranger.certificate == away.credentials.certificate.der
        assert shakes[target].fault.startswith("no TLS 1.3 came about")
        assert not shakes[anybody].fault
        doors = {check.address: check.fault for check in of(found, LegKind.STRANGER)}
        assert doors[anybody].startswith("it lets in a client without a certificate")
        assert not doors[wan.listeners[0]]

        (pid, *_) = (await server.list(prod.id))[0].pids
        os.kill(pid, signal.SIGSTOP)  # it listens, and says nothing
        try:
            found = await asyncio.wait_for(server.verify(cons.id, astray), 20)
        finally:
            os.kill(pid, signal.SIGCONT)
        silent = next(c for c in of(found, LegKind.HANDSHAKE) if c.address == wan.listeners[0])
        assert silent.fault.startswith("it does not answer; a firewall")


def test_what_a_proxy_prints_is_bounded_and_harmless() -> None:
    book = Book()
    book.add(b"one\n\n\x1b]0;owned\x07two\xff" + b"x" * 10_000 + b"\n")
    book.add(b"\n".join(b"%d" % number for number in range(10 * KEPT_LINES)))
    kept = book.last(10**6)
    assert kept.count == 2 + 10 * KEPT_LINES
    assert len(kept.lines) == KEPT_LINES
    assert kept.lines[-1] == str(10 * KEPT_LINES - 1)
    book = Book()
    book.add(b"\x1b]0;owned\x07two\xff" + b"x" * 10_000)
    (line,) = book.last(5).lines
    assert line.isprintable()
    assert line.startswith(r"\x1b]0;owned\x07two")
    assert len(line) == KEPT_WIDTH
    assert book.last(0).lines == ()


async def test_verifications_that_take_long_hold_up_nothing_else(tmp_path: Path) -> None:
    """Whose other gateway says nothing waits; the rest of the gateway does not."""
    session = Session()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async with application(mute) as silent, gateways(tmp_path, "haproxy") as server:
        cons = session.spec(Role.CONS)
        reserved = await server.reserve(cons)
        nowhere = session.bridge(reserved, Role.CONS, silent)
        await server.start(cons.id, nowhere)
        many = [asyncio.create_task(server.verify(cons.id, nowhere)) for _ in range(8)]
        await asyncio.sleep(0.2)
        assert (await asyncio.wait_for(server.list(cons.id), 10))[0].id == cons.id
        assert not any(one.done() for one in many)
        found = await asyncio.gather(*many, return_exceptions=True)
        refused = [one for one in found if isinstance(one, ResourceExhausted)]
        assert len(refused) == 5
        checks = next(one for one in found if isinstance(one, tuple))
        assert of(checks, LegKind.HANDSHAKE)[0].fault.startswith(("it does not answer", "it was not tried"))


async def test_verifications_that_are_given_up_keep_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody waits for any more goes on for a while, and holds a thread."""
    begun, goes_on = [], threading.Event()

    def trying(trial: Trial) -> tuple[LegCheck, ...]:
        begun.append(trial)
        goes_on.wait(60)
        return ()

    monkeypatch.setattr(Trial, "run", trying)
    session = Session()
    async with gateways(tmp_path, "haproxy") as server:
        prod = session.spec(Role.PROD)
        bridge = session.bridge(await server.reserve(prod), Role.PROD, Endpoint("127.0.0.1", 1))
        try:
            for number in range(1, 4):
                given_up = asyncio.create_task(server.verify(prod.id, bridge))
                while len(begun) < number:
                    await asyncio.sleep(0.01)
                given_up.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await given_up
            with pytest.raises(ResourceExhausted, match="verify again in a moment"):
                await server.verify(prod.id, bridge)
        finally:
            goes_on.set()
        assert await server.verify(prod.id, bridge) == ()
        assert len(begun) == 4
