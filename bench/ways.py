"""The ways from a producer to a consumer that are measured beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial

from bench import byhand, sshway
from bench.gateways import RunningGateway, User
from bench.place import Place, family
from bench.traffic import Address
from s2cs.s2ds.backends import BACKENDS
from s2cs.s2ds.backends.base import Found


@dataclass(frozen=True)
class Road:
    """An open way: where each connection goes to, and which processes carry it on either side."""

    addresses: Sequence[Address]
    producer: Sequence[int] = field(default=())
    consumer: Sequence[int] = field(default=())

    @property
    def groups(self) -> tuple[set[int], set[int]]:
        """The processes of the producer's and of the consumer's side, as they are now."""
        return family(self.producer), family(self.consumer)


Opener = Callable[[Place, Address, int], AbstractContextManager[Road]]


@dataclass(frozen=True)
class Way:
    """A way by its name. The kind is direct, tunnel (ours), by hand, or rival."""

    kind: str
    name: str
    open: Opener
    configuration: str = ""

    @property
    def label(self) -> str:
        """Name it in tables."""
        return self.name if self.kind in ("direct", "rival") else f"{self.name}, {self.kind}"


@contextmanager
def _direct(place: Place, target: Address, streams: int) -> Iterator[Road]:
    yield Road([target] * streams)


@contextmanager
def _by_hand(command: byhand.Command, place: Place, target: Address, streams: int) -> Iterator[Road]:
    with byhand.tunnel(command, place, target) as (address, producer, consumer):
        yield Road([address] * streams, producer, consumer)


@contextmanager
def _ssh(place: Place, target: Address, streams: int) -> Iterator[Road]:
    with sshway.tunnel(place, target) as (address, producer, consumer):
        yield Road([address] * streams, producer, consumer)


@contextmanager
def _tunnel(
    user: User, gateways: Sequence[RunningGateway], backend: str, place: Place, target: Address, streams: int
) -> Iterator[Road]:
    before = [each.proxies() for each in gateways]
    with user.session([target], streams, backend) as addresses:
        producer, consumer = (sorted(each.proxies() - old) for each, old in zip(gateways, before, strict=True))
        if not (producer and consumer):
            raise RuntimeError("the session's proxies are not found, so they cannot be measured")
        yield Road(addresses, producer, consumer)


def usable_backends() -> list[str]:
    """Name the backends that this machine has."""
    return [name for name, backend in BACKENDS.items() if not backend.find(None).reason]


def missing_backends() -> dict[str, str]:
    """Say why each of the others cannot be used."""
    return {name: reason for name, backend in BACKENDS.items() if (reason := backend.find(None).reason)}


def direct() -> Way:
    """No proxy at all."""
    return Way("direct", "direct TCP", _direct)


def tunnels(user: User, gateways: Sequence[RunningGateway]) -> list[Way]:
    """Our tunnels, with each backend that is here."""
    return [Way("tunnel", name, partial(_tunnel, user, gateways, name)) for name in usable_backends()]


def embedded_nginx() -> Found | None:
    """Find the Nginx of the `embedded` extra, where sessions get another one by themselves."""
    backend = BACKENDS["nginx"]
    found = [backend.find(candidate) for candidate in backend.candidates()]
    usable = [each for each in found if not each.reason]
    return usable[-1] if len(usable) > 1 else None


def tunnel_through(found: Found, user: User, gateways: Sequence[RunningGateway]) -> Way:
    """Our tunnel with the Nginx that these gateways were told to use."""
    return Way("tunnel", f"nginx {found.version}", partial(_tunnel, user, gateways, "nginx"))


def by_hand() -> list[Way]:
    """Each proxy by hand."""
    return [Way("by hand", name, partial(_by_hand, command)) for name, command in byhand.PROXIES.items()]


def rivals() -> list[Way]:
    """What a user would pick instead."""
    notes = {
        "socat": "OPENSSL-LISTEN and OPENSSL, mutual certificates, -b 65536",
        "hitch": "hitch accepts with client certificates, Stunnel connects: hitch opens no TLS",
    }
    others = [Way("rival", n, partial(_by_hand, command), notes[n]) for n, command in byhand.RIVALS.items()]
    return [Way("rival", "ssh -L", _ssh, "one SSH connection for all streams, aes128-gcm@openssh.com"), *others]
