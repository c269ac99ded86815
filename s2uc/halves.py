"""A session in two halves, for two users at two facilities: the producer's makes a ticket for the consumer's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from s2uc.gateway import TIMEOUT_S, Gateway, GatewayClient
from s2uc.saga import OpenSide, check_prod_listeners, silent
from s2uc.side import Report, Side, Terms, undone_on_failure
from s2uc.ticket import Ticket
from scistream.errors import InvalidArgument
from scistream.vocabulary import Endpoint, Role
from scistream.x509 import SessionCA


async def inbound_request(
    gateway: Gateway,
    terms: Terms,
    key: str,
    prod_listeners: tuple[Endpoint, ...] = (),
    *,
    wan_peers: tuple[str, ...] = (),
    deliver: Callable[[Ticket], None] = lambda ticket: None,
    timeout: float = TIMEOUT_S,
    hello_timeout: float | None = None,
    on_step: Report = silent,
) -> tuple[OpenSide, Ticket]:
    """Open the producer's half and make the ticket for the other.

    Args:
        gateway: the producer's.
        terms: what to ask it for.
        key: with which ProdApp may say Hello.
        prod_listeners: where ProdApp listens; empty means to wait for its Hello.
        wan_peers: of UDP: addresses that the consumer's gateway sends from.
        deliver: called with the ticket, to write it; when it raises, nothing is left.
        timeout: seconds for each call.
        hello_timeout: seconds to wait for ProdApp; None is as long as the gateway does.
        on_step: called with each step as it happens.

    Raises:
        ScistreamError: what failed; nothing is left then.
    """
    check_prod_listeners(prod_listeners, terms)
    if terms.udp is not bool(wan_peers):
        raise InvalidArgument(
            "the producer's half of a session of udp, and no other, needs the addresses of the consumer's gateway in "
            "the WAN; give them with --wan-peers"
        )
    async with GatewayClient(gateway, timeout) as client:
        side = Side(client, Role.PROD, terms, key, on_step, time.monotonic())
        async with undone_on_failure(side):
            await side.reserve()
            targets = await (side.announce(prod_listeners) if prod_listeners else side.await_hello(hello_timeout))
            ca = SessionCA.create(terms.uid, side.expires_at)
            await side.open(side.credentials(ca), targets, wan_peers)
            size = terms.num_conn, terms.rate
            ticket = Ticket(
                terms.uid, *size, gateway.name, side.listeners, side.expires_at, ca, protocol=terms.protocol
            )
            deliver(ticket)
    return OpenSide.of(side), ticket


async def outbound_request(
    gateway: Gateway,
    ticket: Ticket,
    terms: Terms,
    key: str,
    remote_listeners: tuple[Endpoint, ...] = (),
    *,
    timeout: float = TIMEOUT_S,
    on_step: Report = silent,
) -> tuple[OpenSide, datetime]:
    """Open the consumer's half of a ticket's session.

    Args:
        gateway: the consumer's.
        ticket: from the producer's user.
        terms: what to ask for; the uid is the ticket's in any case.
        key: with which ConsApp may say Hello.
        remote_listeners: where the producer's gateway is reached, when not as the ticket says.
        timeout: seconds for each call.
        on_step: called with each step as it happens.

    Returns:
        The side, where ConsApp connects to its listeners, and the end of the session.

    Raises:
        ScistreamError: what failed; nothing is left of this half then.
    """
    terms = replace(terms, uid=ticket.uid, protocol=ticket.protocol)
    async with GatewayClient(gateway, timeout) as client:
        side = Side(client, Role.CONS, terms, key, on_step, time.monotonic())
        async with undone_on_failure(side):
            await side.reserve()
            await side.announce()
            await side.open(side.credentials(ticket.ca), remote_listeners or ticket.listeners)
    return OpenSide.of(side), min(side.expires_at, ticket.expires_at)
