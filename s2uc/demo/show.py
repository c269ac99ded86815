"""The demonstration itself: what any user of the library does, between two gateways made for it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from s2uc.demo.facility import DataPlane, Facility
from s2uc.demo.keeper import Keeper
from s2uc.frames import Amount, Producer, Tally
from s2uc.gateway import Gateway
from s2uc.life import together
from s2uc.session import Session, request
from s2uc.side import StepEvent
from s2uc.trial import gbit_per_s, stream
from scistream.proto import scistream_pb2 as pb

_LOG_WAIT_S = 3.0  # data servers say what TLS they spoke when a stream has closed


@dataclass(frozen=True, slots=True)
class Summary:
    """What was shown."""

    uid: str
    backend: str
    backend_version: str
    num_conn: int
    setup_s: float
    seconds: float
    bytes: int
    gbit_per_s: float
    frames: int
    frame: str
    tls_version: str
    tls_cipher: str

    def as_dict(self) -> dict[str, Any]:
        """Give what `s2uc demo --json` prints."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            ("backend", f"{self.backend} {self.backend_version}"),
            ("set-up", f"{self.setup_s * 1000:.0f} ms from REQ until the way was open"),
            ("throughput", f"{self.gbit_per_s:.2f} Gb/s: {self.bytes / 1e9:.2f} GB in {self.seconds:.2f} s"),
            ("connections", str(self.num_conn)),
            ("frames checked", f"{self.frames} of {self.frame}: sequence, size and checksum of each"),
            ("WAN leg", f"{self.tls_version} {self.tls_cipher}, mutually authenticated"),
        ]
        return "\n".join(f"{name:<15} {text}" for name, text in rows)


async def show(plane: DataPlane, num_conn: int, amount: Amount, tell: Callable[[str], None]) -> Summary:
    """Run the demonstration; nothing is left of it in the end, however it ends.

    Args:
        plane: what carries the data at both gateways.
        num_conn: connections.
        amount: how much to stream.
        tell: called with a line for each thing that happens.

    Raises:
        BadFrame: a frame was wrong or missing.
        ScistreamError: something else did not go.
    """
    begin = time.monotonic()

    def say(text: str) -> None:
        tell(f"{(time.monotonic() - begin) * 1000:8.1f} ms  {text}")

    def on_step(event: StepEvent) -> None:
        say(f"{event.role}  {event.gateway:<8}  {event.step:<13}  {event.detail}".rstrip())

    producer = Producer(num_conn, amount)
    try:
        say("two gateways start, with fresh certificates")
        async with _facilities(plane) as (instrument, computer):
            say(f"instrument serves on {instrument.endpoint}, computer on {computer.endpoint}")
            asked = time.monotonic()
            session = await request(
                instrument, computer, prod_listeners=producer.listeners, num_conn=num_conn, on_step=on_step
            )
            setup_s = time.monotonic() - asked
            async with session:
                say(f"the consumer connects to {session.listeners[0]}" + (" ..." if num_conn > 1 else ""))
                tallies = await stream(producer, session, num_conn)
                say("the stream has ended")
                info = await _look(session)
                say("REL to both gateways")
    finally:
        producer.close()
    say("gateways stopped, nothing left behind")
    return _sum_up(session, info, setup_s, amount, tallies)


@asynccontextmanager
async def _facilities(plane: DataPlane) -> AsyncIterator[tuple[Gateway, Gateway]]:
    directory = Path(tempfile.mkdtemp(prefix="scistream-demo-"))
    keeper = Keeper(directory)
    facilities = [Facility(name, directory / name, plane, keeper) for name in ("instrument", "computer")]
    try:
        await together(*(facility.start() for facility in facilities))
        yield facilities[0].gateway, facilities[1].gateway
    finally:
        await asyncio.gather(*(facility.stop() for facility in facilities), return_exceptions=True)
        shutil.rmtree(directory, ignore_errors=True)
        keeper.dismiss()


async def _look(session: Session) -> pb.SessionInfo:
    """Ask the producer's gateway what its data server says of the WAN leg."""
    end = time.monotonic() + _LOG_WAIT_S
    while True:
        info = (await session.status())[0]
        assert info is not None
        if info.tls_version or time.monotonic() > end:
            return info
        await asyncio.sleep(0.05)


def _sum_up(session: Session, info: pb.SessionInfo, setup_s: float, amount: Amount, tallies: list[Tally]) -> Summary:
    seconds = max(tally.end for tally in tallies) - min(tally.begin for tally in tallies)
    size = sum(tally.bytes for tally in tallies)
    return Summary(
        uid=session.uid,
        backend=info.backend,
        backend_version=info.backend_version,
        num_conn=len(tallies),
        setup_s=round(setup_s, 4),
        seconds=round(seconds, 4),
        bytes=size,
        gbit_per_s=gbit_per_s(size, seconds),
        frames=sum(tally.frames for tally in tallies),
        frame=f"{amount.rows} x {amount.cols} uint16",
        tls_version=info.tls_version,
        tls_cipher=info.tls_cipher,
    )
